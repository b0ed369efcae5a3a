"""Who is stuck is named in the time allowed, and nobody else: by a clock that is told, and for real."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from eqflow.config import schema
from eqflow.runs import identity
from eqflow.training.runtime import watchdog
from tests import config_file
from tests import ROOT
from tests.rejected import rejected

LIMIT, EVERY = 100.0, 5.0


class Run:
  """Processes that beat or not, and a Watch of the first of them that looks every 5 s."""

  def __init__(self, count=2):
    self.watch, self.found, self.seconds = watchdog.Watch(LIMIT), {}, 0.0
    for process in range(count):
      self.found[process] = dict(process=process, host=f'h{process}', pid=process, looks=0, beats=0,
                                 doing='step', step=7)

  def go(self, seconds, *, silent=(), still=()):
    """(seconds until someone is named, the lines), or None."""
    for i in range(int(seconds / EVERY)):
      for process, record in self.found.items():
        if process not in silent:
          record = self.found[process] = record | dict(looks=record['looks'] + 1)
          if process not in still:
            self.found[process] = record | dict(beats=record['beats'] + 1)
      told = self.watch.look(EVERY, dict(self.found))
      if told:
        return (i + 1) * EVERY, told
    return None


def test_who_beats_is_never_named():
  assert Run().go(50 * LIMIT) is None


@pytest.mark.parametrize('silent', [0, 1])
def test_a_process_that_is_stopped_is_named_by_the_others_who_wait_for_it(silent):
  run = Run(3)
  run.go(20)
  # Whoever waits moves no more than the one that is stopped.
  seconds, told = run.go(2 * LIMIT, silent=[silent], still=[0, 1, 2])
  assert 0.8 * LIMIT < seconds <= LIMIT
  named = f"process {silent} (host h{silent}, pid {silent}), in 'step' at step 7, has not been heard of"
  assert len(told) == 1 and told[0].startswith(named)


def test_who_has_waited_longer_than_the_other_is_silent_is_not_named_for_it():
  run = Run()
  run.go(20)
  assert run.go(30, still=[0]) is None   # Process 1 takes its time, and is stopped.
  seconds, told = run.go(2 * LIMIT, silent=[1], still=[0])
  assert seconds <= LIMIT and len(told) == 1 and told[0].startswith('process 1')


def test_a_main_loop_that_hangs_is_named_before_those_that_wait_for_it():
  run = Run()
  run.go(20)
  run.found[0]['step'] = 8
  seconds, told = run.go(2 * LIMIT, still=[0, 1])
  assert 0.8 * LIMIT < seconds <= LIMIT
  assert [line[:9] for line in told] == ['process 1', 'process 0'] and 'has not moved' in told[0]


@pytest.mark.parametrize('doing', watchdog.PATIENT)
def test_what_takes_long_is_waited_for_also_by_the_others(doing):
  run = Run()
  run.go(20)
  run.found[1]['doing'] = doing
  assert run.go(0.8 * watchdog.ALLOWANCE * LIMIT, still=[0, 1]) is None
  seconds, _ = run.go(LIMIT, still=[0, 1])
  assert 0.8 * watchdog.ALLOWANCE * LIMIT + seconds <= watchdog.ALLOWANCE * LIMIT
  run = Run()
  run.go(20)
  run.found[1]['doing'] = doing
  seconds, _ = run.go(2 * LIMIT, silent=[1])
  assert seconds <= LIMIT, 'a process that is stopped says nothing, whatever it was doing'


def test_a_wait_is_over_when_what_it_was_for_is_done():
  run = Run()
  run.go(20)
  run.found[1]['doing'] = 'evaluate'
  assert run.go(3 * LIMIT, still=[0]) is None
  run.found[1]['doing'] = 'step'
  assert run.go(2 * EVERY) is None


def test_files_of_an_earlier_session_name_nobody_and_neither_do_processes_that_have_ended():
  run = Run(3)
  assert run.go(10 * LIMIT, silent=[2]) is None, 'it was never heard, only read'
  assert run.watch.unheard(4) == [2, 3]
  run.go(20)
  run.found.pop(2)
  assert run.go(10 * LIMIT) is None
  assert run.watch.unheard(3) == [2]


def program(tmp_path, process, hang, seconds=3.0):
  """One of two processes, of which `hang` (Python) is the 20th step, all others being a moment."""
  code = f"""
import ctypes, multiprocessing, pathlib, time
from eqflow.training.runtime import watchdog
beats, at = 0, 0
child = multiprocessing.Process(target=time.sleep, args=(600,), daemon=True)
child.start()
pulse = lambda: (beats, 'step', at)
with watchdog.watching(pathlib.Path({str(tmp_path)!r}), {seconds}, pulse, process={process}, count=2):
  for at in range(20):
    beats += 1
    time.sleep(0.05)
  print('ready', child.pid, flush=True)
  {hang}
"""
  return subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, start_new_session=True)


def ready(process):
  """'ready' and its child's pid, once it has begun to hang."""
  said = process.stdout.readline().split()
  assert said and said[0] == 'ready', process.stderr.read()
  return said


def running(pid):
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
  except FileNotFoundError:
    return False


ALIVE = 'while True: time.sleep(0.05); beats += 1'
IN_C = 'ctypes.CDLL(None).sleep(60)'   # Without the interpreter's lock, as JAX waits.


def test_a_stopped_process_is_found_by_the_other_which_ends_with_its_children(tmp_path):
  one, other = program(tmp_path, 0, ALIVE), program(tmp_path, 1, ALIVE)
  try:
    (_, child), _ = ready(one), ready(other)
    time.sleep(0.5)
    other.send_signal(signal.SIGSTOP)
    clock = time.perf_counter()
    _, said = one.communicate(timeout=30)
    assert time.perf_counter() - clock < 3 + 2, 'the limit, and the time to say so'
    assert one.returncode == watchdog.EXIT_CODE == os.EX_SOFTWARE != 75
    assert 'stuck_seconds=3): process 1 (host ' in said and f'pid {other.pid}' in said
    assert not running(int(child)), 'a child goes with it'
  finally:
    os.killpg(other.pid, signal.SIGKILL)
    other.communicate()


def test_a_main_thread_that_hangs_in_c_is_found_with_its_stack(tmp_path):
  process = program(tmp_path, 0, IN_C)
  ready(process)
  clock = time.perf_counter()
  _, said = process.communicate(timeout=30)
  assert time.perf_counter() - clock < 3 + 2 and process.returncode == watchdog.EXIT_CODE
  assert "in 'step' at step 19, has not moved for" in said
  assert 'process 1 has not begun, or has ended' in said
  written = (tmp_path / 'stuck-0.txt').read_text()
  for text in (said, written):
    assert 'most recent call first' in text and 'File "<string>", line 13 in <module>' in text


def test_a_run_that_ends_leaves_no_heartbeat_and_one_that_breaks_off_is_named_by_it(tmp_path):
  for process, hang in enumerate(('pass', 'raise KeyError')):
    ran = program(tmp_path, process, hang)
    ran.communicate(timeout=30)
    assert ran.returncode == process
  assert [path.name for path in (tmp_path / 'heartbeats').iterdir()] == ['1']
  assert json.loads((tmp_path / 'heartbeats/1').read_text())['process'] == 1
  # Begun again beside what that has left, nothing is wrong.
  ran = program(tmp_path, 0, 'for _ in range(100): beats += 1; time.sleep(0.05)')
  ran.communicate(timeout=30)
  assert ran.returncode == 0


def test_whoever_was_stopped_and_goes_on_is_not_stuck(tmp_path):
  process = program(tmp_path, 0, 'for _ in range(20): beats += 1; time.sleep(0.05)', seconds=2.0)
  ready(process)
  process.send_signal(signal.SIGSTOP)
  time.sleep(4)
  process.send_signal(signal.SIGCONT)
  assert process.wait(30) == 0


def test_nobody_watches_where_the_limit_is_0(tmp_path):
  with watchdog.watching(tmp_path, 0.0, lambda: pytest.fail('is not asked'), count=2):
    time.sleep(0.05)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('seconds', [-1.0, float('nan'), '600'])
def test_a_limit_that_is_none_is_refused_and_a_run_may_go_on_with_another(tmp_path, seconds):
  config = config_file('digits').get_config()
  schema.check(config)
  (tmp_path / 'config.json').write_text(config.to_json_best_effort())
  config.train.stuck_seconds = 5.0
  identity.check_config(config, tmp_path)
  with config.ignore_type():
    config.train.stuck_seconds = seconds
  with rejected('train.stuck_seconds', 0):
    schema.check(config)
