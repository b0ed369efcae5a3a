"""Files that are written whole or not at all, also when the power fails; folders of any name."""

import atexit
from collections.abc import Iterator
import contextlib
import functools
import os
import pathlib
import re
import shutil
import tempfile
from typing import BinaryIO

Path = str | os.PathLike
_PLAIN = re.compile(r'[\w./ +=,@-]*', re.ASCII)


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


def resolved(path: Path) -> pathlib.Path:
  """The absolute path without ~, .. and symbolic links: one folder has one name.

  Raises ValueError for an address (gs://bucket), and for links that go in circles.
  """
  if '://' in os.fspath(path):
    raise ValueError(f'{path} is not a folder of a file system; mount the bucket as one')
  try:
    # pathlib would take ./~ for ~, and rejects ~ with an unknown user.
    return pathlib.Path(os.path.expanduser(path)).resolve()
  except (OSError, RuntimeError) as error:
    raise ValueError(f'{path} cannot be followed: {error}') from error


@functools.cache
def plain(folder: Path) -> pathlib.Path:
  """The folder, or a link to it until this process ends, under a name that every library reads as one.

  Libraries take brackets for patterns, backslashes and colons for addresses, and names for UTF-8.
  """
  folder = resolved(folder)
  if _PLAIN.fullmatch(str(folder)):
    return folder
  place = tempfile.mkdtemp(prefix='eqflow-')
  atexit.register(shutil.rmtree, place, ignore_errors=True)
  link = pathlib.Path(place) / 'link'
  link.symlink_to(folder)
  return link


def sync(path: Path) -> None:
  """Returns when the file, or the names in the folder, are on disk."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
