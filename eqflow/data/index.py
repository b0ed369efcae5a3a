"""What is known of the files of a data set: each is read whole once, and again when it has changed."""

from collections.abc import Callable, Sequence
import concurrent.futures
import fcntl
import hashlib
import io
import json
import os
import pathlib

from absl import logging
import tqdm

from eqflow import files
from eqflow.data.records import Part

CACHE = '~/.cache/eqflow/index'


def digest(file: io.BufferedIOBase) -> str:
  """Half of the SHA-256 of the rest of a file, in hexadecimal."""
  return hashlib.file_digest(file, 'sha256').hexdigest()[:32]


def digests(root: str | os.PathLike, names: Sequence[str],
            examine: Callable[[io.BufferedIOBase], str], *, kind: str,
            cache_dir: str | os.PathLike | None = None) -> tuple[
                dict[str, tuple[int, str]], dict[str, str]]:
  """({name: (size, digest)}, {name: reason}) of the files root/name that can be read, and of others.

  examine(file) returns the digest of an open file, or raises what is wrong with it. A file is not
  examined again while its size, inode and times of modification and change are those in the index of
  this root and `kind`, in `cache_dir` (default ~/.cache/eqflow/index). The index lists the files that
  can be read: one that was unreadable for an hour is tried again.
  """
  root = os.path.realpath(root)
  index = _file_of(root, kind, cache_dir)
  known = _read(index)
  found, left_out, new = {}, {}, {}
  for name in names:
    try:
      status = os.stat(os.path.join(root, name))
      files.check_regular(name, status)
    except (OSError, ValueError) as error:
      left_out[name] = getattr(error, 'strerror', None) or str(error)
      continue
    stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    entry = known.get(name)
    if isinstance(entry, list) and entry[:-1] == stamp:
      found[name] = entry
    else:
      new[name] = stamp

  def examined(name):
    try:
      with files.opened(os.path.join(root, name)) as file:
        return examine(file), None
    # Decoders of images raise OSError, SyntaxError, ValueError, struct.error, zlib.error and others.
    except Exception as error:  # noqa: BLE001
      return None, str(error) if type(error) is ValueError else f'{type(error).__name__}: {error}'

  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    results = tqdm.tqdm(pool.map(examined, new), total=len(new), unit='file', leave=False, delay=1,
                        desc=f'reading new files of {files.shown(root)}', disable=None)
    for name, (value, reason) in zip(new, results):
      if reason is None:
        found[name] = [*new[name], value]
      else:
        left_out[name] = reason
  if found != known:
    _write(index, found)
  return {name: (found[name][0], found[name][-1]) for name in names if name in found}, left_out


def parts(root: str | os.PathLike, names: Sequence[str],
          examine: Callable[[io.BufferedIOBase], str] = digest) -> list[Part]:
  """The files as parts of a data set that are not records. Raises ValueError if one cannot be read."""
  found, left_out = digests(root, names, examine, kind='files')
  for name, reason in left_out.items():
    raise ValueError(f'{files.shown(os.path.join(root, name))} cannot be read: {reason}')
  return [Part(name, -1, *entry) for name, entry in found.items()]


def _file_of(root, kind, cache_dir):
  key = hashlib.sha256(os.fsencode(root) + b'\0' + kind.encode()).hexdigest()[:16]
  return pathlib.Path(cache_dir or CACHE).expanduser() / f'{kind}-{key}.json'


def _read(file):
  try:
    known = json.loads(files.read(file, most=2**28))
  except (OSError, ValueError, RecursionError):
    return {}
  return known if isinstance(known, dict) else {}


def _write(file, entries):
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
      # Several processes may open the same data at the same time; each writes a whole index in turn.
      fcntl.flock(folder, fcntl.LOCK_EX)
      files.write_text(file, json.dumps(entries))
    finally:
      os.close(folder)
  except OSError as error:
    logging.warning('Cannot write %s (%s): the next run reads every file again.', file, error)
