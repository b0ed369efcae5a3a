"""A signal ends the program in every phase, after saving what is not saved."""

import os
import signal
import subprocess
import sys
import time

import pytest

from eqflow.training.runtime import preemption
from tests import ROOT


def stopping(phase):
  """A program that is `phase` ('busy' or 'interruptible') for a minute, in C, and prints when it is."""
  return f"""
import time, threading
from eqflow.training.runtime import preemption
with preemption.watched() as stop:
  with stop.busy():
    try:
      if {phase == 'interruptible'}:
        with stop.interruptible():
          print('ready', flush=True)
          time.sleep(60)   # Python resumes it after a signal handler.
      print('ready', flush=True)
      while not stop.asked:
        time.sleep(0.01)
      print('saved', flush=True)
      stop.leave()
    except preemption.Stopped as stopped:
      preemption.end(*stopped.args)
"""


# SIGHUP is what a terminal sends that goes away.
SIGNALS = [pytest.param(number, id=number.name, marks=[pytest.mark.long] * (
    number not in (signal.SIGTERM, signal.SIGHUP))) for number in preemption.SIGNALS]


@pytest.mark.parametrize('number', SIGNALS)
@pytest.mark.parametrize('phase', ['busy', 'interruptible'])
def test_a_signal_exits_at_once_if_all_is_saved_and_otherwise_after_saving(phase, number):
  process = subprocess.Popen([sys.executable, '-c', stopping(phase)], cwd=ROOT, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  assert process.stdout.readline() == 'ready\n'
  process.send_signal(number)
  clock = time.perf_counter()
  out, err = process.communicate(timeout=30)
  assert process.returncode == preemption.EXIT_CODE == os.EX_TEMPFAIL
  assert f'stopped by {number.name}' in err and time.perf_counter() - clock < 10
  assert out == ('saved\n' if phase == 'busy' else '')


def test_a_signal_is_answered_if_stderr_is_closed():
  # As if Ctrl-C has also ended `tee`.
  process = subprocess.Popen([sys.executable, '-c', stopping('interruptible')], cwd=ROOT, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  assert process.stdout.readline() == 'ready\n'
  process.stderr.close()
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=30) == preemption.EXIT_CODE
  process.stdout.close()


def test_a_signal_after_the_last_look_is_answered_at_the_end_of_busy():
  stop = preemption.Stop()
  with pytest.raises(preemption.Stopped, match='SIGTERM'):
    with stop.busy():
      stop.heard(signal.SIGTERM)
  with pytest.raises(preemption.Stopped), stop.interruptible():
    pytest.fail('must not begin after a signal')


def test_nohup_keeps_a_run_alive_and_other_signals_still_stop_it():
  command = ['nohup', sys.executable, '-c', stopping('interruptible')]
  process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE)
  assert process.stdout.readline() == 'ready\n'
  process.send_signal(signal.SIGHUP)
  time.sleep(0.3)
  assert process.poll() is None
  process.send_signal(signal.SIGUSR1)
  assert process.wait(timeout=30) == preemption.EXIT_CODE
  process.communicate()


def test_signal_handlers_are_restored():
  before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
  with preemption.watched() as stop:
    assert stop.asked is None
  assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))


@pytest.mark.parametrize('number', SIGNALS)
def test_a_signal_is_answered_while_the_program_is_still_being_imported(number):
  # Blocks the import of JAX, which takes a second, in a way that a handler of Python can interrupt.
  program = """
import runpy, sys, types
def imported(name, *given, **named):
  if name == 'jax' and 'waited' not in sys.modules:
    sys.modules['waited'] = None
    print('importing', flush=True)
    import time
    time.sleep(30)
  return there(name, *given, **named)
import builtins
there, builtins.__import__ = builtins.__import__, imported
sys.argv = ['eqflow.main']
runpy.run_module('eqflow.main', run_name='__main__')
"""
  process = subprocess.Popen([sys.executable, '-c', program], cwd=ROOT, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  assert process.stdout.readline() == 'importing\n'
  process.send_signal(number)
  _, said = process.communicate(timeout=20)
  assert process.returncode == preemption.EXIT_CODE and f'stopped by {number.name}' in said


def test_a_full_stderr_does_not_block_the_exit(tmp_path):
  program = """
import os, signal, sys
from eqflow.training.runtime import preemption
preemption._PATIENCE = 0.5
preemption.answer()
os.set_blocking(2, True)
os.write(1, b'ready')
while True:
  os.write(2, b'x' * 4096)
"""
  ours, theirs = os.pipe()
  process = subprocess.Popen([sys.executable, '-c', program], cwd=ROOT, stdout=subprocess.PIPE,
                             stderr=theirs)
  assert process.stdout.read(5) == b'ready'
  time.sleep(0.3)   # The pipe is full by then.
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=10) == preemption.EXIT_CODE
  os.close(ours)
  os.close(theirs)
