"""Accounts sum to the wall time, however a run ends, and lost time is computed correctly."""

import itertools
import os
import signal
import subprocess
import sys
import time

import jax
from jax import numpy as jnp
import pytest

from eqflow.training.runtime import ledger
from tests import ROOT


class Clock:
  """A clock that advances only by `go`."""

  def __init__(self, now=100.0):
    self.now = now

  def __call__(self):
    return self.now

  def go(self, seconds):
    self.now += seconds


@pytest.fixture
def opened(tmp_path):
  """(start a session, the clock, the file): sessions write to one file, and are closed at the end."""
  clock, path, books = Clock(), tmp_path / 'ledger.jsonl', []

  def session(**given):
    book = ledger.Ledger(clock=clock, **given)
    book._session = f'{len(books)}'   # All start in the same millisecond and process.
    book.write_to(path)
    books.append(book)
    return book
  yield session, clock, path
  for book in books:
    book.close()


def sums(path):
  """{account: seconds} of accounts with more than 0 s."""
  return {name: seconds for name, seconds in ledger.totals(path).items() if seconds}


def test_nested_accounts_are_not_counted_twice_also_after_an_exception(opened):
  session, clock, path = opened
  book = session(since=90.0)
  clock.go(5)   # 15 since the process was created.
  book.switch('step')
  clock.go(1)
  with pytest.raises(KeyError), book.on('evaluate'):
    clock.go(2)
    with book.on('save'):
      clock.go(4)
    clock.go(8)
    raise KeyError
  clock.go(16)
  book.close()
  assert sums(path) == {'start': 15, 'step': 17, 'evaluate': 10, 'save': 4}
  assert list(ledger.totals(path)) == list(ledger.ACCOUNTS)


def test_waiting_for_a_batch_while_a_step_is_computed_is_not_booked_as_data(opened):
  class Computed:
    def __init__(self, ready):
      self.is_ready = lambda: ready
  session, clock, path = opened
  book = session()
  book.switch('step')
  for running, seconds in ((Computed(False), 1), (Computed(True), 2), (None, 4)):
    with book.on('data', unless=running):
      clock.go(seconds)
  book.close()
  assert sums(path) == {'step': 1, 'data': 6}


def test_time_after_the_checkpoint_that_the_next_training_resumes_from_is_lost(opened):
  session, clock, path = opened

  def train(begin, *saved):
    """1 s of start and 10 s of steps before each save; None: no save after these steps."""
    book = session()
    clock.go(1)
    book.begin(begin)
    book.switch('step')
    for step in saved:
      clock.go(10)
      if step is not None:
        book.saved(step)
    book.close()

  train(None, 0, 10, 20, None)
  assert sums(path) == {'start': 1, 'step': 40}
  train(20, 30, None)            # Ten seconds of the first are lost.
  assert sums(path) == {'start': 2, 'step': 50, 'lost': 10}
  train(30, None)                # 10 s of the second. The third will be lost too.
  assert sums(path) == {'start': 3, 'step': 50, 'lost': 20}
  train(20, 30, 40)              # Checkpoint 30 was damaged: the second is lost too.
  assert sums(path) == {'start': 2, 'step': 50, 'lost': 1 + 20 + 11 + 10}
  train(40)                      # Nothing was left to do.
  assert sums(path) == {'start': 3, 'step': 50, 'lost': 42}
  train(None)                    # From scratch: the checkpoints were deleted.
  assert sums(path) == {'start': 1, 'lost': 3 + 50 + 42}


def test_a_finished_run_and_other_commands_lose_nothing(opened):
  session, clock, path = opened
  book = session()
  book.begin(None)
  with book.on('step'):
    clock.go(10)
  book.saved(10)
  with book.on('evaluate'):
    clock.go(5)
  book.saved(10)
  book.close()
  other = session()
  with other.on('evaluate'):   # --mode=evaluate, interrupted
    clock.go(3)
  other.close()
  session().begin(10)
  assert sums(path) == {'step': 10, 'evaluate': 5 + 3}


def test_truncated_lines_are_skipped(opened):
  session, clock, path = opened
  book = session()
  clock.go(3)
  book.saved(1)
  book.close()
  with path.open('a') as file:
    file.write('{"session": "0", "seconds": {"step": 12')
  other = session()
  clock.go(4)
  other.close()
  assert sums(path) == {'start': 7}
  with path.open('a') as file:
    file.write('null\n{"seconds": 3}\n[]\n{"session": "a", "seconds": {"x": 1}}\n'
               '{"session": "a", "seconds": {"step": "x"}}\n'
               '{"session": "a", "step": [], "seconds": {}}\n')
  with path.open('ab') as file:
    file.write(b'\xff\xfe\n')
  assert sums(path) == {'start': 7}


def test_a_line_that_cannot_be_written_is_part_of_the_next(opened, monkeypatch):
  session, clock, path = opened
  book, write = session(), os.write
  with monkeypatch.context() as patch:
    def full(handle, data):
      write(handle, data[:20])
      raise OSError(28, 'No space left on device')
    patch.setattr(ledger.os, 'write', full)
    clock.go(2)
    book.saved(3)
    assert sums(path) == {}
  clock.go(4)
  book.close()
  assert sums(path) == {'start': 6}


def test_lines_are_written_while_one_account_stays_open(tmp_path):
  book = ledger.Ledger(every=0.05)
  book.write_to(tmp_path / 'ledger.jsonl')
  with book.on('compile'):
    time.sleep(0.5)
    assert ledger.totals(tmp_path / 'ledger.jsonl')['compile'] > 0.3, 'a kill would lose it'
  book.close()


def test_compilation_is_booked_as_compile_inside_any_account(tmp_path):
  with ledger.booked(tmp_path) as book:
    with book.on('evaluate'):
      clock = time.perf_counter()
      jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x) + os.getpid())(jnp.ones((8, 8))).block_until_ready()
      took = time.perf_counter() - clock
  found = ledger.totals(tmp_path / 'ledger.jsonl')
  assert found['compile'] > found['evaluate'] > 0, 'a first call is mostly compilation'
  assert abs(found['compile'] + found['evaluate'] - took) < 0.05


def test_created_is_before_the_first_import():
  code = ('import time; began = time.monotonic(); from eqflow.training.runtime import ledger; '
          'print(began - ledger.created())')
  out = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
                       check=True)
  assert 0 < float(out.stdout) < 5, 'an interpreter starts in some hundredths of a second'


VICTIM = """
import json, pathlib, sys, time
from eqflow.training.runtime import ledger
path = pathlib.Path(sys.argv[1])
book = ledger.Ledger(since=ledger.created(), every=0.02)
book.write_to(path / 'ledger.jsonl')
saved = path / 'saved'
with book.on('restore'):
  at = int(saved.read_text()) if saved.exists() else 0
book.begin(at if saved.exists() else None)
book.switch('step')
while at < 60:
  with book.on('data'):
    time.sleep(0.01)
  time.sleep(0.03)
  at += 1
  if at % 10 == 0:
    with book.on('save'):
      partial = path / 'partial'
      partial.write_text(str(at))
      partial.replace(saved)
    book.saved(at)
book.close()
"""


def test_the_accounts_of_a_run_killed_three_times_sum_to_its_wall_time(tmp_path):
  wall, chances = 0.0, 3
  while True:
    clock = time.monotonic()
    process = subprocess.Popen([sys.executable, '-c', VICTIM, tmp_path], cwd=ROOT)
    while process.poll() is None and chances:
      time.sleep(0.005)
      # Written in one instant, or not there yet.
      saved = (tmp_path / 'saved').read_text() if (tmp_path / 'saved').exists() else ''
      if saved and int(saved) >= 50 - 10 * chances:
        time.sleep(0.2)
        chances -= 1
        process.send_signal(signal.SIGKILL)
        break
    process.wait()
    wall += time.monotonic() - clock
    if not process.returncode:
      break
    assert process.returncode == -signal.SIGKILL
  found = ledger.totals(tmp_path / 'ledger.jsonl')
  # Of three that are killed a tenth of a second may be missing, which would have come with their next
  # line; the interpreter's own end, four times, is in no account.
  assert wall - 3 * 0.1 - 4 * 0.025 < sum(found.values()) <= wall + 0.05, (wall, found)
  assert found['step'] > 60 * 0.03 and found['data'] > 60 * 0.01 and found['lost'] > 0
  told = subprocess.run([sys.executable, '-m', 'eqflow.training.runtime.ledger', tmp_path], cwd=ROOT,
                        capture_output=True, text=True, check=True).stdout
  assert 'in 4 session(s), goodput' in told


def test_data_that_delayed_nothing_leaves_its_account_at_0():
  class Computing:
    def is_ready(self):
      return False
  ticks = itertools.count()
  # Every look at the clock takes a second.
  book = ledger.Ledger(clock=lambda: float(next(ticks)))
  book.switch('step')
  for _ in range(3):
    with book.on('data', unless=Computing()):
      pass
  assert book._seconds['data'] == 0, 'more was moved from the account than was booked'
