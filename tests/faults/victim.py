"""A small run that kills itself at a point of saving, or sends itself a signal in a phase.

  python -m tests.faults.victim --workdir=DIR [--point=NAME --count=3] [--phase=NAME]

It writes what `eqflow.main` would, and resumes like it. Points kill its process group; phases send it
SIGTERM, or --signal.
"""

import argparse
import contextlib
import functools
import os
import pathlib
import signal
import sys
import threading
import time
import types

from ml_collections import ConfigDict

from eqflow import files
from eqflow.commands import evaluate, train
from eqflow.runs import blueprint
from eqflow.runs.run import run_of
from eqflow.training import checkpoint, checksums
from eqflow.training.runtime import ledger, preemption
from tests import config_file

STEPS, SAVED_EVERY = 240, 12
LOGGED_EVERY = 5         # so that most restarts are between two lines
SIGNALLED = 75   # the step in which a signal comes, three after a save


def config_of(data_dir: str = '~/.cache/eqflow/data', *, short: bool = False) -> ConfigDict:
  """240 steps of 16 of a tiny network with two averages: 20 checkpoints, 10 snapshots, one picture.

  With `short`, of moons and without a picture, which starts faster.
  """
  config = config_file('toy' if short else 'digits').get_config()
  config.data.dir = '' if short else data_dir
  config.model.update(dict(width=16, depth=1) | ({} if short else dict(heads=2)))
  config.train.update(dict(
      batch=16, num_examples=16 * STEPS, log_examples=16 * LOGGED_EVERY, keep_checkpoints=2,
      sample_examples=16 * 180, checkpoint_examples=16 * SAVED_EVERY))
  config.optimizer.warmup_examples = 640
  config.ema.update(ConfigDict(dict(
      decays=(0.999,), stds=(0.05, 0.1), snapshot_examples=16 * 2 * SAVED_EVERY)))
  config.sample.update(dict(num_steps=3, batch=16))
  config.evaluate.num_samples = 64
  return config.lock()


def _die():
  os.killpg(os.getpgid(0), signal.SIGKILL)


def _before(count, function, then, *, counts=lambda *given: True):
  """function, with a call of `then()` before the count-th call that counts."""
  calls = []

  @functools.wraps(function)
  def wrapped(*given, **named):
    calls.extend([1] * counts(*given))
    if len(calls) == count:
      calls.append(1)
      then()
    return function(*given, **named)
  return wrapped


def _dies(owner, name, *, own='', **options):
  """count -> patches owner.name so that the process dies before its count-th call.

  With `own`, it patches owner.own.name, in a copy of the module `own` for `owner` alone.
  """
  def patch(count):
    where = _alone(owner, own) if own else owner
    setattr(where, name, _before(count, getattr(where, name), _die, **options))
  return patch


def _alone(module, name):
  """Gives a module its own copy of os or shutil, which can be patched for it alone."""
  setattr(module, name, types.SimpleNamespace(**vars(getattr(module, name))))
  return getattr(module, name)


def _half_gone(count):
  """Dies when the count-th old checkpoint is renamed and one of its files is deleted."""
  shutil = _alone(checkpoint, 'shutil')
  def half(path, **options):
    next(path.rglob('_METADATA')).unlink()
    _die()
  whole, calls = shutil.rmtree, []
  def rmtree(path, **options):
    calls.extend([1] * (path.suffix == '.deleted'))
    (half if len(calls) == count else whole)(path, **options)
  shutil.rmtree = rmtree


# Each kills the run at the count-th time that it is reached.
POINTS = {
    'before a save': _dies(checkpoint.Checkpoints, 'save'),
    'while arrays are written': _dies(checkpoint.Checkpoints, '_finish'),
    'before the manifest': _dies(checksums, 'write'),
    'before the manifest has its name': _dies(
        files, 'replace', own='os', counts=lambda path, to: to.name == checksums.NAME),
    'before the checkpoint has its name': _dies(
        checkpoint, 'replace', own='os', counts=lambda path, to: path.suffix == '.partial'),
    'before old ones go': _dies(checkpoint.Checkpoints, '_prune'),
    'before an old one loses its name': _dies(
        checkpoint, 'replace', own='os', counts=lambda path, to: to.suffix == '.deleted'),
    'while an old one goes': _half_gone,
    'before a snapshot has its name': _dies(
        files, 'replace', own='os', counts=lambda path, to: to.suffix == '.safetensors'),
}


def _later(number, seconds):
  # From another thread, while the main thread is in the phase.
  def send():
    time.sleep(seconds)
    print(f'signalled at {time.time()}', file=sys.stderr, flush=True)
    os.kill(os.getpid(), number)
  threading.Thread(target=send, daemon=True).start()


def _signalled(owner, name, count, seconds):
  """number -> patches owner.name so that the signal comes soon after its count-th call starts."""
  return lambda number: setattr(owner, name, _before(
      count, getattr(owner, name), lambda: _later(number, seconds)))


def _step_signalled(count, seconds):
  """number -> patches the compiled step: the signal comes soon after its count-th call begins."""
  compiled = blueprint.compiled
  def patch(number):
    blueprint.compiled = lambda *given: _before(
        count, compiled(*given), lambda: _later(number, seconds))
  return patch


PHASES = {
    'starting': _signalled(train.dataset, 'evaluation_source', 1, 0.0),
    'compiling': _signalled(blueprint, 'compiled', 1, 0.2),
    'stepping': _step_signalled(SIGNALLED, 0.0),
    'saving': _signalled(checksums, 'write', 3, 0.0),
    'sampling': _signalled(train, 'preview', 1, 0.2),
    # The last save: only the evaluation follows.
    'ending': _signalled(checksums, 'write', 1 + STEPS // SAVED_EVERY, 0.0),
    'evaluating': _signalled(evaluate.generate, 'samples', 2, 0.2),
}


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--point', choices=POINTS)
  parser.add_argument('--count', type=int, default=3, help='the save at which it dies')
  parser.add_argument('--phase', choices=PHASES)
  parser.add_argument('--signal', default='SIGTERM')
  parser.add_argument('--short', action='store_true', help='a faster run')
  given = parser.parse_args()
  workdir, config = pathlib.Path(given.workdir), config_of(short=given.short)
  if given.point:
    POINTS[given.point](given.count)
  if given.phase:
    PHASES[given.phase](signal.Signals[given.signal])
  try:
    book = ledger.Ledger(since=ledger.created())
    with preemption.watched() as stop, contextlib.closing(book):
      train.train(run_of(config, workdir), stop, book)
      if not given.short:
        evaluate.evaluate(run_of(config, workdir), book=book)
  except preemption.Stopped as stopped:
    preemption.end(*stopped.args)


if __name__ == '__main__':
  main()
