"""Folders of any name: trained in, killed, resumed and sampled from, or rejected before training.

Everything happens in this process, with a network of 8 units, except every tenth case, which is a
process of its own that is killed. The other folders of a command have the same names.
"""

import contextlib
import functools
import io
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

from absl.testing import flagsaver
import numpy as np

from eqflow import main
from eqflow.commands import evaluate
from eqflow.data import pipeline, sources
from tests import ROOT
from tests.faults import states

NAMES = (
    'plain', 'a b', ' leading', 'trailing ', 'lr=[0.003]', 'x[1]', '[!a]', '[', '[]', '*', 'a*', '?',
    '{}', '{a,b}', 'back\\slash', '\\', "it's", '"quoted"', '%', '%s%(x)d', 'new\nline', 'tab\t',
    '#1', '$HOME', '~', '&', ';', '|', '<>', '!', '`ls`', '-x', '...', 'gs:', 'C:\\x', 'x.partial',
    'a' * 200, 'é漢字😀', 'e\u0301', os.fsdecode(b'not \xff UTF-8'))
TINY = (f'--config={ROOT}/configs/toy.py', '--config.model.width=8', '--config.model.depth=1',
        '--config.train.batch=16', '--config.train.num_examples=160', '--config.train.log_examples=16',
        '--config.train.checkpoint_examples=32', '--config.train.sample_examples=48',
        '--config.sample.num_steps=2', '--config.sample.batch=16', '--config.evaluate.num_samples=16')
KILLED = 7   # the step before which a run is killed


class Killed(BaseException):
  """The process is gone."""


def program(*flags: str) -> tuple[int, str]:
  """(exit code, what it printed), in this process."""
  argv, said = ['eqflow.main', *flags], io.StringIO()
  with (flagsaver.flagsaver(), mock.patch.object(sys, 'argv', argv), contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said), mock.patch.object(evaluate, 'evaluate')):
    try:
      main.main(main.parse(argv))
      code = 0
    except SystemExit as ended:
      code = ended.code
    except Killed:
      code = -signal.SIGKILL
  return code, said.getvalue()


def killing():
  """Inside, a training ends before step KILLED as if the process was killed."""
  whole = pipeline.batches

  def batches(*given, **named):
    for n, batch in enumerate(whole(*given, **named), 1):
      if n == KILLED:
        raise Killed
      yield batch
  return mock.patch.object(pipeline, 'batches', batches)


def killed_process(*flags: str) -> None:
  """A process with these flags, killed when it has a checkpoint after the first."""
  workdir = pathlib.Path(flags[0].partition('=')[2])
  process = subprocess.Popen([sys.executable, '-m', 'eqflow.main', *flags], cwd=ROOT,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  while process.poll() is None and not any(
      path.name in ('2', '4', '6', '8') for path in workdir.glob('checkpoints/*')):
    time.sleep(0.005)
  process.kill()
  process.wait()


@functools.cache
def expected(folder: pathlib.Path) -> str:
  """The digest of a run that nothing disturbs, in a plain folder."""
  code, said = program(f'--workdir={folder / "whole"}', *TINY)
  if code:
    raise RuntimeError(said)
  return states.digest(folder / 'whole')


def run(folder: pathlib.Path, i: int) -> dict[str, int | str]:
  """The row of case i: {'what', 'cases', 'rejected', 'lost', 'other', 'unnamed'}."""
  name, own = NAMES[i // 2 % len(NAMES)], i % 2 == 0
  place = folder / f'paths{i}'
  workdir, wanted = place / name if own else place / name / 'run', expected(folder)
  found = dict(what='own name' if own else "a parent's name", cases=1, rejected=0, lost=0, other=0,
               unnamed=0)
  flags = f'--workdir={workdir}', *TINY
  if i % 10 == 9:
    killed_process(*flags)
    code, said = -signal.SIGKILL, ''
  else:
    with killing():
      code, said = program(*flags)
  if code == 2:
    found.update(rejected=1, unnamed=name not in said)
    return found
  (code, said), also = program(*flags), ''
  if code or 'resuming from step' not in said:
    found['lost'] = 1
  elif states.digest(files_plain(workdir)) != wanted:
    found['other'] = 1
  else:
    also = sampled(workdir, place / 'more' / name, own)
  found['lost'] += bool(also)
  if found['lost']:
    print(ascii(name), code, ascii((also or said)[-600:]), flush=True)
  shutil.rmtree(place)
  return found


def files_plain(workdir: pathlib.Path) -> pathlib.Path:
  """The run's folder where orbax alone can read it: a copy."""
  copy = workdir.parent.parent / 'copy'
  shutil.rmtree(copy, ignore_errors=True)
  return shutil.copytree(workdir, copy)


def sampled(workdir: pathlib.Path, more: pathlib.Path, own: bool) -> str:
  """What a command that failed printed; pairs, inputs, guides and data are in the folder `more`."""
  commands = [('--mode=sample', '--num_samples=3')]
  if own:
    more.mkdir(parents=True)
    moved = more / 'moved' / workdir.name
    shutil.copytree(workdir, moved)
    np.save(more / 'inputs.npy', np.zeros((2, 2), np.float32))
    commands += [('--mode=pairs', '--num_samples=3', f'--out={more / "pairs"}'),
                 ('--mode=denoise', f'--inputs={more / "inputs.npy"}', '--noise=0.5'),
                 ('--mode=sample', '--num_samples=3', '--config.sample.scale=2.0',
                  f'--config.sample.guide.workdir={moved}', '--config.sample.guide.params=params')]
  for flags in commands:
    code, said = program(f'--workdir={workdir}', *TINY, *flags)
    if code:
      return f'{flags}: {said}'
  return data(more) if own else ''


def data(folder: pathlib.Path) -> str:
  """What is wrong with the digits in this folder, or ''."""
  home = pathlib.Path('~/.cache/eqflow/data').expanduser()
  if not (home / 'digits').exists():
    sources.load('digits', split='all', data_dir=home)
  shutil.copytree(home / 'digits', folder / 'digits')
  try:
    found = sources.load('digits', split='all', data_dir=folder)
  except Exception as error:
    return f'data in {folder}: {type(error).__name__} {error}'
  return '' if len(found) == 1797 else f'{len(found)} digits'
