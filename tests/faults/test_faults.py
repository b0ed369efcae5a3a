"""Injected faults, in short; python -m tests.faults runs the long form."""

import collections
import os
import signal
import subprocess
import textwrap
import threading
import time

import jax
import numpy as np
import pytest

from eqflow import files
from eqflow.commands import train
from eqflow.runs.run import run_of
from eqflow.training import checksums, sharding
from eqflow.training.runtime import preemption
from tests.faults import (
    disk, kills, logs, nans, reader, records, results, states, streams, tables, victim)


@pytest.mark.long
@pytest.mark.parametrize('count', [9, pytest.param(99, marks=pytest.mark.long)])
@pytest.mark.parametrize('most', [0, pytest.param(3, marks=pytest.mark.long)])
def test_nan_and_infinity_never_reach_a_checkpoint(tmp_path, most, count):
  found = nans.poison(tmp_path, most, count, seed=0)
  assert len(found) == len(nans.KINDS)
  for name, row in found.items():
    assert row == dict(cases=count // 3, unclean=0), f'{name}: {row}'


def test_a_fault_in_one_leaf_is_in_the_gradient_of_that_leaf_alone():
  given = {'a': np.float32(3), 'b': np.float32(5)}
  def loss(params, factor):
    return nans._marked(params['a'], factor) ** 2 + params['b'] ** 2
  value, grads = jax.value_and_grad(loss)(given, np.float32(np.nan))
  assert value == 34 and np.isnan(grads['a']) and grads['b'] == 10


@pytest.mark.long
@pytest.mark.parametrize('kills,steps', [(2, 120), (10, 600)])
def test_every_record_is_read_once_after_any_kills(tmp_path, kills, steps):
  found = records.kill(tmp_path, kills, seed=5, steps=steps)
  assert found['killed'] == kills and found['epochs'] == steps * reader.BATCH // reader.RECORDS
  wrong = {key: found[key] for key in (
      'lost', 'repeated', 'misplaced', 'miscounted', 'processes left', 'files left') if found[key]}
  assert not wrong, f'{wrong} of {found}'


def test_a_record_that_is_read_twice_is_detected(tmp_path):
  reader.read(tmp_path, 0, 0, 1, 0, steps=26)
  spans = [(0, 1, 0, 0)]
  assert not records.judged(tmp_path, spans, 26)['misplaced']
  path = reader.log_of(tmp_path, 0, 0)
  # In the first epoch, step 3 repeats the records of step 2.
  third, fourth = (str(line['records']) for line in reader.lines(path)[2:4])
  path.write_text(path.read_text().replace(fourth, third))
  found = records.judged(tmp_path, spans, 26)
  assert found['lost'] == found['repeated'] == found['misplaced'] == 8


@pytest.mark.long
@pytest.mark.parametrize('kind', [
    pytest.param(kind, marks=pytest.mark.needs(own is None or disk.mountable()))
    for kind, (own, *_) in disk.KINDS.items()])
def test_a_run_that_cannot_write_keeps_its_checkpoints_and_resumes_later(tmp_path, kind):
  expected = disk.unbroken(tmp_path)
  assert disk.hurt(tmp_path, expected, kind) == dict(cases=1, unreported=0, broken=0, other=0)


def test_a_failed_save_is_reported_one_step_later(tmp_path, monkeypatch):
  config = nans.config_of(0)
  recipe, step, leaves = nans.injected(config)
  source, made = train.dataset.open_source(config), []

  def full(path):
    if '4.partial' in str(path):
      raise OSError(28, 'No space left on device')

  def counted(state, batch):
    made.append(int(state.step) + 1)
    for thread in threading.enumerate():
      if thread is not threading.main_thread() and '_finish' in thread.name:
        thread.join()   # The save of the step before has ended or failed.
    return step(state, batch)

  monkeypatch.setattr(files, 'sync', full)
  with pytest.raises(OSError, match='No space left.* newest checkpoint is 2;'):
    nans.run(config, recipe, counted, leaves, tmp_path, source)
  assert made[-1] == 5, f'saved after step 4, reported after step {made[-1]}'


def test_a_signal_between_two_saves_saves_the_step_that_it_came_in(tmp_path, monkeypatch):
  config, stop, calls = victim.config_of(short=True), preemption.Stop(), []
  place = sharding.place_batch

  def placed(*given):
    calls.append(1)
    if len(calls) == 5:
      stop.heard(signal.SIGTERM)
    return place(*given)
  monkeypatch.setattr(sharding, 'place_batch', placed)
  with pytest.raises(preemption.Stopped, match='SIGTERM'):
    train.train(run_of(config, tmp_path), stop)
  assert states.whole(tmp_path)[-1] == 5, f'only saved every {victim.SAVED_EVERY} steps'


def test_a_signal_during_the_last_save_waits_for_it(tmp_path, monkeypatch):
  config = victim.config_of(short=True).copy_and_resolve_references()
  config.train.num_examples, config.ema.snapshot_examples = 16 * 4, 0
  stop, write, ended = preemption.Stop(), checksums.write, []
  monkeypatch.setattr(preemption, 'end', ended.append)

  def slow(folder):
    if folder.name == '4.partial':
      stop.heard(signal.SIGTERM)
      time.sleep(0.5)
    write(folder)

  monkeypatch.setattr(checksums, 'write', slow)
  with pytest.raises(preemption.Stopped, match='SIGTERM'):
    train.train(run_of(config, tmp_path), stop)
  assert states.steps(tmp_path)[-1] == 4 and not ended, 'the run exited before its last save was done'

  (tmp_path / 'config.json').unlink()
  config.seed += 1
  with pytest.raises(ValueError, match="checkpoints/4 is of run '"):
    train.train(run_of(config, tmp_path))


@pytest.mark.long
@pytest.mark.parametrize('count', [5, 20])
def test_a_run_that_is_killed_often_ends_in_the_state_of_an_undisturbed_one(tmp_path, count):
  # The first fills the compilation cache; the second measures how long a run takes.
  _, seconds = (kills.finish(tmp_path / name, '--short') for name in ('whole', 'again'))
  expected = states.digest(tmp_path / 'whole')
  found = results.resume('kills', count, lambda i, wanted: dict(what='all', **kills.chain(
      tmp_path, expected, seconds, wanted, f'0 {i}', '--short')), counted='killed',
                        folder=tmp_path / 'results')
  found = results.summed(found)['all']
  wrong = {name: found[name] for name in ('lost', 'other', 'unsaved', 'regressed') if found[name]}
  assert found['killed'] == count and not wrong, found


@pytest.mark.long
@pytest.mark.parametrize('signals', [False, True])
def test_the_log_of_a_run_that_is_interrupted_is_that_of_an_undisturbed_one(tmp_path, signals):
  kills.finish(tmp_path / 'whole', '--short')
  seconds = logs.trained_for(tmp_path / 'whole')
  found = logs.chain(tmp_path, tmp_path / 'whole', seconds, 3, signals, 'log')
  assert found['lines'] == victim.STEPS // victim.LOGGED_EVERY and not found['changed'], found


@pytest.mark.long
@pytest.mark.parametrize('kind', streams.KINDS)
def test_a_training_needs_no_terminal_and_commands_say_what_they_could_not_print(tmp_path, kind):
  found = streams.without(tmp_path, disk.unbroken(tmp_path), kind)
  assert found == dict(cases=1, stopped=0, other=0, unsaid=0, unreported=0)


@pytest.mark.long
def test_a_program_that_starts_from_scratch_after_every_kill_is_detected(tmp_path, monkeypatch):
  # It ends in the same state, but keeps nothing.
  training = textwrap.dedent('''
      import shutil, sys
      from tests.faults import victim
      place = next(arg.partition('=')[2] for arg in sys.argv if arg.startswith('--workdir='))
      for name in ('checkpoints', 'snapshots'):
        shutil.rmtree(f'{place}/{name}', ignore_errors=True)
      victim.train._check_new = lambda workdir: None
      victim.main()
      ''')
  start = subprocess.Popen
  kills.finish(tmp_path / 'whole', '--short')
  monkeypatch.setattr(kills.subprocess, 'Popen', lambda command, **options: start(
      [command[0], '-c', training, *command[3:]], **options))
  kills.finish(tmp_path / 'again', '--short')
  process = kills.start(tmp_path / 'run', '--short')
  while not states.whole(tmp_path / 'run'):
    time.sleep(0.05)
  os.killpg(process.pid, signal.SIGKILL)
  process.communicate()
  found = collections.Counter(lost=0, other=0, regressed=0)
  stood = [(len(states.resumed_from(tmp_path / 'run')), states.whole(tmp_path / 'run')[-1])]
  expected = states.digest(tmp_path / 'whole')
  found = kills._judged(tmp_path / 'run', expected, found, '--short', stood=stood)
  assert found == dict(lost=0, other=0, regressed=1)


def test_a_measurement_resumes_where_it_stopped(tmp_path):
  seen = []
  def case(i, wanted):
    seen.append((i, wanted))
    if len(seen) == 3:
      raise KeyboardInterrupt
    return dict(what='a', killed=2, slowest=1.0 + i)
  with pytest.raises(KeyboardInterrupt):
    results.resume('kills', 7, case, counted='killed', folder=tmp_path)
  rows = results.resume('kills', 7, case, counted='killed', folder=tmp_path)
  assert seen == [(0, 7), (1, 5), (2, 3), (2, 3), (3, 1)]
  assert results.summed(rows) == {'a': {'killed': 8, 'slowest': 4.0}}


def test_the_readme_shows_the_stored_results():
  text = tables.README.read_text()
  assert tables.filled(text) == text, 'run python -m tests.faults.tables'
