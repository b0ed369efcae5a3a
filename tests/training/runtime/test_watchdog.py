"""The watchdog reports stuck processes in time and no others: with a simulated clock, and for real."""

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
  """Simulated processes, and a Watch that polls them every 5 s."""

  def __init__(self, count=2):
    self.watch, self.found, self.seconds = watchdog.Watch(LIMIT), {}, 0.0
    for process in range(count):
      self.found[process] = dict(process=process, host=f'h{process}', pid=process, looks=0, beats=0,
                                 doing='step', step=7)

  def go(self, seconds, *, silent=(), still=()):
    """(seconds until a process is reported, the lines), or None."""
    for i in range(int(seconds / EVERY)):
      for process, record in self.found.items():
        if process not in silent:
          record = self.found[process] = record | dict(looks=record['looks'] + 1)
          if process not in still:
            self.found[process] = record | dict(beats=record['beats'] + 1)
      lines = self.watch.look(EVERY, dict(self.found))
      if lines:
        return (i + 1) * EVERY, lines
    return None


def test_a_process_that_makes_progress_is_never_reported():
  assert Run().go(50 * LIMIT) is None


@pytest.mark.parametrize('silent', [0, 1])
def test_a_stopped_process_is_reported_and_those_that_wait_for_it_are_not(silent):
  run = Run(3)
  run.go(20)
  # The processes that wait make no progress either.
  seconds, told = run.go(2 * LIMIT, silent=[silent], still=[0, 1, 2])
  assert 0.8 * LIMIT < seconds <= LIMIT
  named = f"process {silent} (host h{silent}, pid {silent}), in 'step' at step 7, has sent no heartbeat"
  assert len(told) == 1 and told[0].startswith(named)


def test_a_process_that_waited_before_the_other_was_stopped_is_not_reported():
  run = Run()
  run.go(20)
  assert run.go(30, still=[0]) is None   # Process 1 is slow, and then stopped.
  seconds, told = run.go(2 * LIMIT, silent=[1], still=[0])
  assert seconds <= LIMIT and len(told) == 1 and told[0].startswith('process 1')


def test_a_hanging_main_loop_is_reported_before_those_that_wait_for_it():
  run = Run()
  run.go(20)
  run.found[0]['step'] = 8
  seconds, told = run.go(2 * LIMIT, still=[0, 1])
  assert 0.8 * LIMIT < seconds <= LIMIT
  assert [line[:9] for line in told] == ['process 1', 'process 0'] and 'has made no progress' in told[0]


@pytest.mark.parametrize('doing', watchdog.PATIENT)
def test_all_processes_get_a_longer_timeout_while_one_does_what_takes_long(doing):
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
  assert seconds <= LIMIT, 'a stopped process must be reported in time'


def test_the_timeout_is_short_again_after_what_took_long():
  run = Run()
  run.go(20)
  run.found[1]['doing'] = 'evaluate'
  assert run.go(3 * LIMIT, still=[0]) is None
  run.found[1]['doing'] = 'step'
  assert run.go(2 * EVERY) is None


def test_stale_heartbeats_and_ended_processes_are_not_reported():
  run = Run(3)
  assert run.go(10 * LIMIT, silent=[2]) is None, 'its heartbeat is of an earlier session'
  assert run.watch.unheard(4) == [2, 3]
  run.go(20)
  run.found.pop(2)
  assert run.go(10 * LIMIT) is None
  assert run.watch.unheard(3) == [2]


def program(tmp_path, process, hang, seconds=3.0):
  """One of two processes: 20 short steps, and then `hang`, a statement."""
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
  """['ready', pid of its child], as soon as it hangs."""
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


def test_a_stopped_process_is_found_by_the_other_which_exits_with_its_children(tmp_path):
  one, other = program(tmp_path, 0, ALIVE), program(tmp_path, 1, ALIVE)
  try:
    (_, child), _ = ready(one), ready(other)
    time.sleep(0.5)
    other.send_signal(signal.SIGSTOP)
    clock = time.perf_counter()
    _, said = one.communicate(timeout=30)
    assert time.perf_counter() - clock < 3 + 2, 'the timeout, and the time to report'
    assert one.returncode == watchdog.EXIT_CODE == os.EX_SOFTWARE != 75
    assert 'stuck_seconds=3): process 1 (host ' in said and f'pid {other.pid}' in said
    # Killed before the process ends, but by the kernel, at its own time.
    while running(int(child)):
      assert time.perf_counter() - clock < 3 + 10, 'its child must be killed too'
      time.sleep(0.01)
  finally:
    os.killpg(other.pid, signal.SIGKILL)
    other.communicate()


def test_a_main_thread_that_hangs_in_c_is_reported_with_its_stack(tmp_path):
  process = program(tmp_path, 0, IN_C)
  ready(process)
  clock = time.perf_counter()
  _, said = process.communicate(timeout=30)
  assert time.perf_counter() - clock < 3 + 2 and process.returncode == watchdog.EXIT_CODE
  assert "in 'step' at step 19, has made no progress for" in said
  assert 'process 1 has not started, or has ended' in said
  written = (tmp_path / 'stuck-0.txt').read_text()
  for text in (said, written):
    assert 'most recent call first' in text and 'File "<string>", line 13 in <module>' in text


def test_a_heartbeat_is_deleted_at_the_end_but_not_after_an_exception(tmp_path):
  for process, hang in enumerate(('pass', 'raise KeyError')):
    ran = program(tmp_path, process, hang)
    ran.communicate(timeout=30)
    assert ran.returncode == process
  assert [path.name for path in (tmp_path / 'heartbeats').iterdir()] == ['1']
  assert json.loads((tmp_path / 'heartbeats/1').read_text())['process'] == 1
  # A new process ignores the stale heartbeat.
  ran = program(tmp_path, 0, 'for _ in range(100): beats += 1; time.sleep(0.05)')
  ran.communicate(timeout=30)
  assert ran.returncode == 0


def test_a_process_that_was_stopped_and_continues_is_not_stuck(tmp_path):
  process = program(tmp_path, 0, 'for _ in range(20): beats += 1; time.sleep(0.05)', seconds=2.0)
  ready(process)
  process.send_signal(signal.SIGSTOP)
  time.sleep(4)
  process.send_signal(signal.SIGCONT)
  assert process.wait(30) == 0


def test_a_timeout_of_0_disables_the_watchdog(tmp_path):
  with watchdog.watching(tmp_path, 0.0, lambda: pytest.fail('must not be polled'), count=2):
    time.sleep(0.05)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('seconds', [-1.0, float('nan'), '600'])
def test_the_timeout_is_checked_and_may_change_when_a_run_resumes(tmp_path, seconds):
  config = config_file('digits').get_config()
  schema.check(config)
  (tmp_path / 'config.json').write_text(config.to_json_best_effort())
  config.train.stuck_seconds = 5.0
  identity.check_config(config, tmp_path)
  with config.ignore_type():
    config.train.stuck_seconds = seconds
  with rejected('train.stuck_seconds', 0):
    schema.check(config)
