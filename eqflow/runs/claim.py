"""A run's folder: locked by one training process; it stores the config and a digest of the data."""

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
  """Locks workdir for one training process and writes config.json and data.json there.

  Raises ValueError if another process has it locked, or if it contains a run of another config or data.
  """
  check_config(config, workdir)
  with contextlib.ExitStack() as stack:
    def enter():
      stack.enter_context(locked(workdir, 'training in', '--workdir'))
      _check_data(workdir / 'data.json', source)
      _write(workdir / 'config.json', json.loads(config.to_json_best_effort()))
    # An error of the first process is raised in all: otherwise the others would wait for it.
    multihost.broadcast(enter)
    yield


@contextlib.contextmanager
def locked(folder: pathlib.Path, doing: str, flag: str) -> Iterator[None]:
  """Creates the folder if needed and locks it. Raises ValueError if another process has it locked."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(f'{flag}={folder} cannot be created ({error.strerror}): give a folder on a disk '
                     'that you may write to') from error
  with (folder / '.lock').open('w') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise ValueError(f'another process is {doing} {folder}; wait for it, or give another '
                       f'{flag}') from error
    except OSError as error:
      raise ValueError(f'{lock.name} cannot be locked ({error}); mount its file system with locks '
                       f'(Lustre: -o flock), or give another {flag}') from error
    yield


def _check_data(path, source):
  # What identifies the records: the paths of a folder, the model that drew the pairs.
  names = getattr(source.records, 'made', '\n'.join(getattr(source.records, 'paths', ())))
  ours = {'records': len(source), 'damaged': list(source.damaged),
          'files': hashlib.sha256(names.encode()).hexdigest()}
  try:
    theirs = json.loads(path.read_text()) if path.exists() else ours
  except ValueError as error:
    raise ValueError(f'{path} cannot be read ({error}); restore it from a copy, or delete it if the '
                     'data have not changed') from error
  if theirs != ours:
    raise ValueError(f'{source.name} has {len(source)} records, which differ from the training data '
                     f'in {path}; restore the data, or give another --workdir')
  _write(path, ours)


def _write(path, value):
  text = json.dumps(value, indent=2).encode() + b'\n'
  if path.exists() and path.read_bytes() == text:
    return
  try:
    with files.replacing(path) as file:
      file.write(text)
  except OSError as error:
    raise OSError(f'{path} cannot be written ({error}); free space on the disk') from error
