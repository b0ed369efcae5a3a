"""Files written whole or not at all; regular files read within a bound; folders of any name."""

import atexit
from collections.abc import Iterator
import contextlib
import errno
import functools
import json
import os
import pathlib
import re
import shutil
import stat
import tempfile
from typing import Any, BinaryIO

Path = str | os.PathLike
_PLAIN = re.compile(r'[\w./ +=,@-]*', re.ASCII)
_NESTED = 100


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

  Raises ValueError for an address (gs://bucket), an unknown ~user, and a path that cannot exist.
  """
  if '://' in os.fspath(path):
    raise ValueError(f'{path} is not a folder of a file system; mount the bucket as one')
  # pathlib would take ./~ for ~.
  home = os.path.expanduser(path)
  if os.fspath(home).startswith('~'):
    raise ValueError(f'{path} names no user of this machine; use ./{path} for a folder of that name')
  try:
    found = pathlib.Path(home).resolve()
    # Raises for a circle of links, a name that is too long, or a folder that may not be read.
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
      found.stat()
    return found
  except (OSError, RuntimeError) as error:
    most = getattr(error, 'errno', None) == errno.ENAMETOOLONG
    remedy = '; give names of at most 255 bytes' if most else ''
    raise ValueError(f'{path} cannot be followed: {error}{remedy}') from error


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


def opened(path: Path) -> BinaryIO:
  """The regular file `path`, open for reading: unlike `open`, this never waits for another process.

  Raises ValueError for a folder, FIFO, socket or device, and OSError as `open` does.
  """
  # Looked at before it is opened, since opening a device may act on it; and again, for what it is now.
  check_regular(path, os.stat(path))
  file = open(path, 'rb', opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK))
  try:
    check_regular(path, os.fstat(file.fileno()))
  except ValueError:
    file.close()
    raise
  return file


def check_regular(path: Path, status: os.stat_result) -> None:
  """Raises ValueError, with what it is, unless `status` is of a regular file."""
  if not stat.S_ISREG(status.st_mode):
    kinds = {stat.S_IFDIR: 'folder', stat.S_IFIFO: 'FIFO', stat.S_IFSOCK: 'socket'}
    kind = kinds.get(stat.S_IFMT(status.st_mode), 'device')
    raise ValueError(f'{shown(path)} is a {kind}, not a file with contents: give a regular file')


def read(path: Path, *, most: int) -> bytes:
  """The bytes of a regular file. Raises ValueError for more than `most`, before they are read."""
  with opened(path) as file:
    size = os.fstat(file.fileno()).st_size
    if size > most:
      raise ValueError(f'{shown(path)} has {size:,} bytes, more than the {most:,} that are read: give '
                       'a smaller file')
    return file.read(size)


def read_json(path: Path, *, most: int = 2**24) -> Any:
  """The value in a JSON file of at most `most` bytes; parsing takes up to 25 times as much memory.

  Raises ValueError for another file, and for lists and objects nested more than 100 times.
  """
  text = read(path, most=most)
  try:
    value = json.loads(text)
    level = [value]
    for _ in range(_NESTED):
      level = [each for found in level for each in _below(found)]
  except RecursionError:
    level = True
  if level:
    raise ValueError(f'{shown(path)} has lists or objects nested more than {_NESTED} times: give '
                     'another file')
  return value


def _below(value):
  return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def shown(path: Path) -> str:
  """The path as text that any stream can print: bytes that are not UTF-8 are shown as \\xff."""
  return os.fsencode(path).decode(errors='backslashreplace')
