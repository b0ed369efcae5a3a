"""A run's folder: locked by one training process, with the config and the data's digest in it."""

from collections.abc import Iterator
import contextlib
import fcntl
import hashlib
import json
import pathlib

from ml_collections import ConfigDict

from eqflow import files
from eqflow.data import sources
from eqflow.runs.identity import check_config
from eqflow.training.runtime import multihost


@contextlib.contextmanager
def claimed(config: ConfigDict, workdir: pathlib.Path, source: sources.Source) -> Iterator[None]:
  """Holds workdir for one training process, with the config and the data's digest written there.

  Raises ValueError where another config's run, other data or another process is there.
  """
  check_config(config, workdir)
  with contextlib.ExitStack() as stack:
    def enter():
      stack.enter_context(locked(workdir, 'training in', '--workdir'))
      _check_data(workdir / 'data.json', source)
      _write(workdir / 'config.json', json.loads(config.to_json_best_effort()))
    # All hear of what the first process is refused: else they would wait for it.
    multihost.broadcast(enter)
    yield


@contextlib.contextmanager
def locked(folder: pathlib.Path, doing: str, flag: str) -> Iterator[None]:
  """The folder, made if need be and kept from other processes; ValueError where one holds it."""
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / '.lock').open('w') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise ValueError(f'another process is {doing} {folder}: wait for it, or give another '
                       f'{flag}') from error
    except OSError as error:
      raise ValueError(f'{lock.name} cannot be locked ({error}), so that two processes might write to '
                       f'{folder}: mount its file system with locks (Lustre: -o flock), or give '
                       f'another {flag}') from error
    yield


def _check_data(path, source):
  # What the records are: the files of a folder, the model behind pairs.
  names = getattr(source.records, 'made', '\n'.join(getattr(source.records, 'paths', ())))
  ours = {'records': len(source), 'damaged': list(source.damaged),
          'files': hashlib.sha256(names.encode()).hexdigest()}
  try:
    theirs = json.loads(path.read_text()) if path.exists() else ours
  except ValueError as error:
    raise ValueError(f'{path} cannot be read ({error}): restore it from a copy, or delete it where the '
                     'data are those that this run was trained on') from error
  if theirs != ours:
    raise ValueError(f'{source.name} has {len(source)} records that are not those this run was '
                     f'trained on ({path}): restore the data, or give another --workdir')
  _write(path, ours)


def _write(path, value):
  text = json.dumps(value, indent=2).encode() + b'\n'
  if path.exists() and path.read_bytes() == text:
    return
  try:
    with files.replacing(path) as file:
      file.write(text)
  except OSError as error:
    raise OSError(f'{path} cannot be written ({error}): make room, or mend the disk') from error
