"""Splits a run's wall time into accounts, one of them open at a time, so that they sum to it.

  python -m eqflow.training.runtime.ledger runs/digits

workdir/ledger.jsonl is only ever appended to. A line holds what was booked since the line before it,
{"session": which start of the process, "seconds": {account: seconds}}. With "step", everything before
the line is in the checkpoint of that step. With "from", its session resumes from the checkpoint of that
step, or starts from scratch (null). Time is lost that a training booked after the checkpoint that the
next training resumes from; this is computed when the lines are read. A killed process loses what it
booked after its last line: 0.5 % of its time or 0.1 s, at most 10 s. The interpreter's own exit, half a
second, is not booked.
"""

from collections.abc import Callable, Iterator
import contextlib
import json
import math
import os
import pathlib
import sys
import threading
import time
from typing import Any

# start: everything before the first step that has no account of its own; step: the loop, also while it
# waits for devices; data: waiting for a batch while no device computes; save: while a save blocks the
# loop; evaluate: samples, pictures and distances; lost: trained, and trained again after a restart.
ACCOUNTS = ('start', 'compile', 'data', 'step', 'save', 'evaluate', 'restore', 'lost')
_COMPILING = {f'/jax/core/compile/{name}_duration' for name in (
    'jaxpr_trace', 'jaxpr_to_mlir_module', 'backend_compile')}
_IMPORTED = time.monotonic()


class Ledger:
  """The accounts of this process. `start` is open from `since` on, a time of `clock`; by default, now.

  Nothing is written before `write_to`; what cannot be written is kept for the next line.
  """

  def __init__(self, *, since: float | None = None, clock: Callable[[], float] = time.monotonic,
               every: float = 10.0):
    self.account, self.beats, self.step = 'start', 0, 0
    self._seconds = dict.fromkeys(ACCOUNTS, 0.0)
    self._clock, self._began = clock, clock() if since is None else since
    self._switched = self._began
    self._session, self._owner = f'{time.time():.3f}-{os.getpid()}', threading.get_ident()
    self._file, self._every, self._whole = None, every, True
    # Two locks, so that booking never waits for a disk.
    self._booking, self._writing, self._closed = threading.Lock(), threading.Lock(), threading.Event()

  @contextlib.contextmanager
  def on(self, account: str, *, unless: Any = None) -> Iterator[None]:
    """Books the time inside to `account`, and switches back to the open account at the end.

    If the array `unless` is still being computed then, the block has delayed nothing: its time goes to
    the account outside.
    """
    outer = self.switch(account)
    began = self._switched
    try:
      yield
    finally:
      self.switch(outer)
      if unless is not None and not unless.is_ready():
        self._move(account, outer, self._switched - began)

  def timed(self, account: str, function: Callable) -> Callable:
    """`function`, its calls booked to `account`."""
    def booked_call(*args, **kwargs):
      with self.on(account):
        return function(*args, **kwargs)
    return booked_call

  def timed_loop(self, batches: Iterator, step: Callable) -> tuple[Iterator, Callable]:
    """(batches, step), booked: waiting for a batch is `data`, unless the devices are busy meanwhile."""
    running = None

    def timed_next():
      with self.on('data', unless=running):
        return next(batches)

    def timed_step(*given):
      nonlocal running
      *out, health = step(*given)
      running, self.step, self.beats = health.loss, self.step + 1, self.beats + 1
      return *out, health

    return iter(timed_next, None), timed_step

  def switch(self, account: str) -> str:
    """Opens `account`; returns the one that was open."""
    with self._booking:
      now, outer = self._clock(), self.account
      self._seconds[outer] += now - self._switched
      self.account, self._switched, self.beats = account, now, self.beats + 1
      return outer

  def beat(self) -> None:
    """Reports progress to the watchdog."""
    self.beats += 1

  def pulse(self) -> tuple[int, str, int]:
    """(beats, account, step): beats changes whenever the main loop has made progress."""
    return self.beats, self.account, self.step

  def _move(self, account, other, seconds):
    with self._booking:
      self._seconds[account] -= seconds
      self._seconds[other] += seconds

  def compiled(self, seconds: float) -> None:
    """Moves the last `seconds` of the thread that owns the ledger from the open account to compile."""
    if threading.get_ident() == self._owner:
      self._move(self.account, 'compile', seconds)

  def write_to(self, path: pathlib.Path) -> None:
    """Starts to append lines to `path`: at `begin`, at `saved`, and every 10 s."""
    if self._file is not None:
      return
    self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    size = os.fstat(self._file).st_size
    # A line that a crash has truncated must stay a line of its own.
    self._whole = not size or os.pread(self._file, 1, size - 1) == b'\n'
    threading.Thread(target=self._keep_writing, daemon=True).start()

  def _keep_writing(self):
    age = lambda: self._clock() - self._began
    # A line costs up to a millisecond, and a run of months should not have too many to read.
    while not self._closed.wait(min(self._every, max(0.1, age() / 200))):
      self._write()

  def begin(self, step: int | None) -> None:
    """Training resumes from the checkpoint of `step`, or starts from scratch (None)."""
    self._write({'from': step})

  def saved(self, step: int) -> None:
    """Everything so far is in the checkpoint of `step`, or is evaluation, which is not done again."""
    self._write({'step': step})

  def close(self) -> None:
    """Writes the last line. Nothing is booked after it."""
    if self._closed.is_set():
      return
    self._closed.set()
    self._write()
    with self._writing:
      if self._file is not None:
        os.close(self._file)
        self._file = None

  def _write(self, more=None):
    with self._writing:
      if self._file is None:
        return
      with self._booking:
        now = self._clock()
        self._seconds[self.account] += now - self._switched
        self._switched = now
        booked = {name: round(seconds, 6) for name, seconds in self._seconds.items()}
        booked = {name: seconds for name, seconds in booked.items() if seconds}
      line = json.dumps({'session': self._session, **(more or {}), 'seconds': booked}) + '\n'
      data = ('' if self._whole else '\n').encode() + line.encode()
      try:
        self._whole = os.write(self._file, data) == len(data)
      except OSError:
        # A full disk must not end a run that can still be saved.
        self._whole = False
      if self._whole:
        with self._booking:
          for name, seconds in booked.items():
            self._seconds[name] -= seconds


@contextlib.contextmanager
def booked(workdir: pathlib.Path, book: Ledger | None = None, *,
           active: bool = True) -> Iterator[Ledger]:
  """`book`, or a new ledger for this block; if `active`, it writes to workdir/ledger.jsonl.

  Inside, the time that JAX compiles in this thread is booked as compile.
  """
  # Imported here: reading a ledger should not import JAX.
  from jax import monitoring
  found = book or Ledger()
  def compiled(name, seconds, **_):
    if name in _COMPILING:
      found.compiled(seconds)
  monitoring.register_event_duration_secs_listener(compiled)
  try:
    if active:
      found.write_to(workdir / 'ledger.jsonl')
    yield found
  finally:
    monitoring.unregister_event_duration_listener(compiled)
    if book is None:
      found.close()


def created() -> float:
  """The time.monotonic() at which this process was created, or this file was imported if unknown."""
  try:
    started = int(pathlib.Path('/proc/self/stat').read_text().rpartition(')')[2].split()[19])
    ago = time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf('SC_CLK_TCK')
  except (OSError, ValueError, IndexError, AttributeError):
    return _IMPORTED
  return time.monotonic() - ago if 0 <= ago < math.inf else _IMPORTED


def reached(path: pathlib.Path) -> int:
  """The last step that was saved, or 0."""
  return max((line.get('step', 0) for line in _lines(path)), default=0) if path.exists() else 0


def totals(path: pathlib.Path) -> dict[str, float]:
  """{account: seconds} of all sessions that have written to `path`, in the order of ACCOUNTS."""
  lines, lost = list(_lines(path)), set()
  for i, line in enumerate(lines):
    if 'from' in line:
      lost |= _lost(lines[:i], line)
  found = dict.fromkeys(ACCOUNTS, 0.0)
  for i, line in enumerate(lines):
    for name, seconds in line['seconds'].items():
      found['lost' if i in lost else name] += seconds
  return found


def _lost(lines, resumed):
  """The indices of earlier lines with work that is not in the checkpoint that `resumed` starts from."""
  trainings = {line['session'] for line in lines if 'from' in line} - {resumed['session']}
  step, lost = -1 if resumed['from'] is None else resumed['from'], set()
  for i in reversed(range(len(lines))):
    session = lines[i]['session']
    if lines[i].get('step', math.inf) <= step:
      trainings.discard(session)   # What it did before this line is in the checkpoint.
    if session in trainings:
      lost.add(i)
  return lost


def _lines(path):
  for text in path.read_text(errors='replace').splitlines():
    # Skips lines that a crash has truncated, and lines of other programs.
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
      line = json.loads(text)
      numbers = [*line['seconds'].values(), line.get('step', 0), line.get('from') or 0]
      if (line['session'] and set(line['seconds']) <= set(ACCOUNTS)
          and all(isinstance(number, int | float) for number in numbers)):
        yield line


def table(path: pathlib.Path) -> str:
  """`totals` and their percentages as lines to print; goodput is the percentage of steps not lost."""
  found = totals(path)
  total = sum(found.values()) or math.inf
  rows = ''.join(f'{name:<10}{seconds:12,.1f} s{seconds / total:8.1%}\n'
                 for name, seconds in found.items())
  sessions = len({line['session'] for line in _lines(path)})
  return (f'{rows}{"sum":<10}{sum(found.values()):12,.1f} s in {sessions:,} session(s), '
          f'goodput {found["step"] / total:.1%}\n')


if __name__ == '__main__':
  for workdir in sys.argv[1:]:
    print(f'{workdir}\n{table(pathlib.Path(workdir) / "ledger.jsonl")}', end='')
