"""A run's folder: locked by one training process; it stores the config and the identity of the data."""

from collections.abc import Iterator
import contextlib
import fcntl
import hashlib
import json
import pathlib

from ml_collections import ConfigDict

from eqflow import files
from eqflow.data import identity, sources
from eqflow.runs.identity import check_config
from eqflow.training.runtime import multihost


@contextlib.contextmanager
def claimed(config: ConfigDict, workdir: pathlib.Path, source: sources.Source) -> Iterator[None]:
  """Locks workdir for one training process; writes config.json, data.json and records.txt there.

  data.json has the names of the classes and the files that are left out; records.txt lists each file or
  record, as `data.identity` describes.

  Raises ValueError if another process has it locked, or if it contains a run of another config or data.
  """
  check_config(config, workdir)
  with contextlib.ExitStack() as stack:
    def enter():
      stack.enter_context(locked(workdir, 'training in', '--workdir'))
      check_data(workdir, source)
      _write(workdir / 'config.json',
             json.dumps(json.loads(config.to_json_best_effort()), indent=2) + '\n')
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


def check_data(workdir: pathlib.Path, source: sources.Source) -> None:
  """Raises ValueError if the run in workdir was trained on other data, with what changed first.

  Writes data.json and records.txt if the folder has no run yet.
  """
  parts = source.records.parts()
  lines = identity.text(parts)
  ours = {'name': source.name, 'records': len(source), 'classes': list(source.classes),
          'identity': hashlib.sha256(lines.encode()).hexdigest(), 'left_out': dict(source.left_out)}
  path, listed = workdir / 'data.json', workdir / 'records.txt'
  if not path.exists():
    _write(listed, lines)
    _write(path, json.dumps(ours, indent=2) + '\n')
    return
  try:
    theirs = files.read_json(path)
    count, classes, digest = theirs['records'], theirs['classes'], theirs['identity']
    if digest == ours['identity'] and classes == ours['classes']:
      return
    change = identity.first_change(identity.parsed(files.read(listed, most=2**30).decode()), parts)
  except (OSError, ValueError, LookupError, TypeError) as error:
    raise ValueError(f'{path} or {listed.name} cannot be read ({error}); restore them from a copy, or '
                     'delete data.json if the data have not changed') from error
  change = change or f'the classes are {ours["classes"]}, not {classes}'
  raise ValueError(f'{source.name} has {len(source):,} records and is not the data that {workdir} was '
                   f'trained on, {count:,} records: {change}; restore the data, or give '
                   'another --workdir')


def _write(path, text):
  if path.exists() and path.read_bytes() == text.encode():
    return
  try:
    files.write_text(path, text)
  except OSError as error:
    raise OSError(f'{path} cannot be written ({error}); free space on the disk') from error
