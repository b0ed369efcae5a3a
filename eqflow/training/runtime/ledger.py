"""Where a run's wall time went: at every moment exactly one account is open, so that they sum to it.

  python -m eqflow.training.runtime.ledger runs/digits

workdir/ledger.jsonl is only ever appended to. A line holds what was booked since the line before it,
{"session": which start of the process, "seconds": {account: seconds}}; with "step", all before it is in
the checkpoint of that step; with "from", its session goes on from the checkpoint of that step, or from
none. What is lost is found when the lines are read: whatever a training had booked after the checkpoint
that the next one went on from. A killed process loses what came after its last line: half a percent of
its time or a tenth of a second, and never more than 10 s. What the interpreter takes to end, half a
second, is in no account.
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

# start: until the first step but for what follows; step: the loop, also waiting for devices; data:
# waiting for a batch while no device computes; save: while a save holds the loop up, and no longer;
# evaluate: pictures and distances, with the samples they are of; lost: trained, and trained again.
ACCOUNTS = ('start', 'compile', 'data', 'step', 'save', 'evaluate', 'restore', 'lost')
_COMPILING = {f'/jax/core/compile/{name}_duration' for name in (
    'jaxpr_trace', 'jaxpr_to_mlir_module', 'backend_compile')}
_IMPORTED = time.monotonic()


class Ledger:
  """The accounts of this process, `start` being open from the time `since` of `clock` on, or from now.

  Nothing is written before `write_to`; what cannot be written then is kept for the next line.
  """

  def __init__(self, *, since: float | None = None, clock: Callable[[], float] = time.monotonic,
               every: float = 10.0):
    self.account, self.beats, self.step = 'start', 0, 0
    self._seconds = dict.fromkeys(ACCOUNTS, 0.0)
    self._clock, self._began = clock, clock() if since is None else since
    self._turned = self._began
    self._session, self._owner = f'{time.time():.3f}-{os.getpid()}', threading.get_ident()
    self._file, self._every, self._whole = None, every, True
    # Booking never waits for a disk: writing has a lock of its own.
    self._booking, self._writing, self._closed = threading.Lock(), threading.Lock(), threading.Event()

  @contextlib.contextmanager
  def on(self, account: str, *, beside: Any = None) -> Iterator[None]:
    """Within, `account` is open, and the one that was is not.

    Where the array `beside` is still being computed at the end, the block has held nothing up: its time
    is booked where the clock was before.
    """
    outer = self.turn(account)
    began = self._turned
    try:
      yield
    finally:
      self.turn(outer)
      if beside is not None and not beside.is_ready():
        self._move(account, outer, self._turned - began)

  def turn(self, account: str) -> str:
    """The account that was open: from here on `account` is."""
    with self._booking:
      now, outer = self._clock(), self.account
      self._seconds[outer] += now - self._turned
      self.account, self._turned, self.beats = account, now, self.beats + 1
      return outer

  def beat(self) -> None:
    """Says that the account that is open gets on."""
    self.beats += 1

  def pulse(self) -> tuple[int, str, int]:
    """(beats, account, step): beats is another number whenever the main loop has moved."""
    return self.beats, self.account, self.step

  def _move(self, account, other, seconds):
    with self._booking:
      self._seconds[account] -= seconds
      self._seconds[other] += seconds

  def compiled(self, seconds: float) -> None:
    """Moves the last `seconds` of this thread to compile, from whichever account is open."""
    if threading.get_ident() == self._owner:
      self._move(self.account, 'compile', seconds)

  def write_to(self, path: pathlib.Path) -> None:
    """Lines go to `path` from here on: of `begin`, of `cut`, and one every 10 s at least."""
    if self._file is not None:
      return
    self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    size = os.fstat(self._file).st_size
    # A line that a crash has cut short stays a line of its own.
    self._whole = not size or os.pread(self._file, 1, size - 1) == b'\n'
    threading.Thread(target=self._keep_writing, daemon=True).start()

  def _keep_writing(self):
    age = lambda: self._clock() - self._began
    # A line costs a millisecond at most; of a run of months there are not too many to read.
    while not self._closed.wait(min(self._every, max(0.1, age() / 200))):
      self._write()

  def begin(self, step: int | None) -> None:
    """Training goes on from the checkpoint of `step`; from none where it is None."""
    self._write({'from': step})

  def cut(self, step: int) -> None:
    """All until here is in the checkpoint of `step`, or comes after it and need not be done again."""
    self._write({'step': step})

  def close(self) -> None:
    """The last line. Nothing is booked after it."""
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
        self._seconds[self.account] += now - self._turned
        self._turned = now
        told = {name: round(seconds, 6) for name, seconds in self._seconds.items()}
        told = {name: seconds for name, seconds in told.items() if seconds}
      line = json.dumps({'session': self._session, **(more or {}), 'seconds': told}) + '\n'
      data = ('' if self._whole else '\n').encode() + line.encode()
      try:
        self._whole = os.write(self._file, data) == len(data)
      except OSError:
        # A full disk ends no run that can still be saved.
        self._whole = False
      if self._whole:
        with self._booking:
          for name, seconds in told.items():
            self._seconds[name] -= seconds


@contextlib.contextmanager
def booked(workdir: pathlib.Path, book: Ledger | None = None, *,
           active: bool = True) -> Iterator[Ledger]:
  """`book`, or a ledger of this block alone; where active it writes to workdir/ledger.jsonl.

  Within, whatever JAX compiles in this thread is booked as compile.
  """
  # Who only reads a ledger need not wait for JAX to be imported.
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
  """The time.monotonic() at which this process was made; of this file's import where none tells."""
  try:
    started = int(pathlib.Path('/proc/self/stat').read_text().rpartition(')')[2].split()[19])
    ago = time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf('SC_CLK_TCK')
  except (OSError, ValueError, IndexError, AttributeError):
    return _IMPORTED
  return time.monotonic() - ago if 0 <= ago < math.inf else _IMPORTED


def reached(path: pathlib.Path) -> int:
  """The last step that a checkpoint was written of, 0 where none was."""
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


def _lost(lines, begun):
  """The numbers of the lines whose work is not in the checkpoint that `begun` goes on from."""
  trainings = {line['session'] for line in lines if 'from' in line} - {begun['session']}
  step, lost = -1 if begun['from'] is None else begun['from'], set()
  for i in reversed(range(len(lines))):
    session = lines[i]['session']
    if lines[i].get('step', math.inf) <= step:
      trainings.discard(session)   # What it did before stands.
    if session in trainings:
      lost.add(i)
  return lost


def _lines(path):
  for text in path.read_text(errors='replace').splitlines():
    # A line cut short by a crash is none, and neither is one of another program.
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
      line = json.loads(text)
      numbers = [*line['seconds'].values(), line.get('step', 0), line.get('from') or 0]
      if (line['session'] and set(line['seconds']) <= set(ACCOUNTS)
          and all(isinstance(number, int | float) for number in numbers)):
        yield line


def table(path: pathlib.Path) -> str:
  """`totals` with their shares as lines to print, and goodput: the share of steps that stand."""
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
