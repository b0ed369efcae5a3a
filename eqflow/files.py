"""Files that are written whole or not at all, also when the power fails."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
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


def sync(path: Path) -> None:
  """Returns when the file, or the names in the folder, are on disk."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
