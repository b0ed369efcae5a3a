"""Files that are written whole or not at all, also when the power fails."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import shutil
from typing import BinaryIO

Path = str | os.PathLike


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
  """A new file that becomes `path` at the end of the block, in place of the old one.

  The content is on disk before the name is, and the name before this returns. If the block or the
  disk fails, `path` is as before and nothing else is left. The folder must exist.
  """
  path = pathlib.Path(path)
  partial = path.with_name(path.name + '.partial')
  try:
    with partial.open('wb') as file:
      yield file
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)
  finally:
    partial.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[pathlib.Path]:
  """A new folder that becomes `path` at the end of the block, in place of the old one.

  If the block fails or the process is killed in it, `path` is as before. Write its
  files with `replacing`. A kill between the two renames at the end leaves the old folder as
  `path`.old.
  """
  path = pathlib.Path(path)
  partial, old = path.with_name(path.name + '.partial'), path.with_name(path.name + '.old')
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  try:
    yield partial
    sync(partial)
    if path.exists():
      shutil.rmtree(old, ignore_errors=True)
      os.rename(path, old)
    os.rename(partial, path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
  """`path` <- text, whole or not at all."""
  with replacing(path) as file:
    file.write(text.encode())


def sync(path: Path) -> None:
  """Returns when the file, or the names in the folder, are on disk."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
