"""SIGTERM and SIGINT: noticed in every phase of a run, and answered where nothing would be lost.

Python runs a handler only between two instructions of its own, so not within a compilation of minutes.
The signal's number is therefore read by a thread, from a descriptor that C writes to.
"""

from collections.abc import Iterator
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from typing import NoReturn

# os.EX_TEMPFAIL: the same command, run again, goes on.
EXIT_CODE = 75
SIGNALS = signal.SIGTERM, signal.SIGINT
_PATIENCE = 5.0   # seconds for the last words


class Stopped(Exception):
  """The run was asked to stop, and all that it was is saved."""


class Stop:
  """Whether a signal has asked for an end, and whether the run has anything that would be lost now."""

  def __init__(self):
    self.asked = None     # the signal
    self._busy = 0
    self._lock = threading.Lock()

  @contextlib.contextmanager
  def busy(self) -> Iterator[None]:
    """Within, the process is not ended: the run looks at `asked`, saves, and raises Stopped.

    So does the end of the block, for a signal that came after the last look.
    """
    with self._changed(1):
      yield
    self.leave()

  @contextlib.contextmanager
  def free(self) -> Iterator[None]:
    """Within, a signal ends the process at once, as it does outside `busy`: all is saved."""
    with self._changed(-1):
      self.leave()
      yield

  @contextlib.contextmanager
  def _changed(self, by):
    with self._lock:
      self._busy += by
    try:
      yield
    finally:
      with self._lock:
        self._busy -= by

  def leave(self, *, told: bool = False) -> None:
    """Raises Stopped where a signal has asked for the end, here or, as one is told, elsewhere."""
    if self.asked or told:
      raise Stopped(signal.Signals(self.asked).name if self.asked else 'a signal to another process')

  def _heard(self, number):
    self.asked = number
    with self._lock:
      if self._busy > 0:
        return
      # The main thread may be within C++ for minutes: it is not waited for.
      end(signal.Signals(number).name)


def end(name: str) -> None:
  """Ends this process and those it has started, with EXIT_CODE and a line that says why."""
  # Nobody may be reading a pipe that is full; Ctrl-C may have ended who did.
  late = threading.Timer(_PATIENCE, leave, (EXIT_CODE,))
  late.daemon = True
  late.start()
  with contextlib.suppress(OSError, ValueError):
    print(f'eqflow: stopped by {name}; the same command goes on from the last checkpoint',
          file=sys.stderr, flush=True)
  with contextlib.suppress(OSError, ValueError):
    sys.stdout.flush()
  leave(EXIT_CODE)


def leave(code: int) -> NoReturn:
  """Ends this process and those it has started at once, with exit code `code`."""
  for child in multiprocessing.active_children():
    child.kill()
  os._exit(code)


def answer() -> None:
  """From here on a signal ends the process with EXIT_CODE: nothing is begun that could be lost."""
  for number in SIGNALS:
    signal.signal(number, lambda number, _: end(signal.Signals(number).name))


def unanswered() -> None:
  """Signals do again what they do in any Python program."""
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def watched() -> Iterator[Stop]:
  """A Stop that hears SIGTERM and SIGINT until the end of the block; for the main thread."""
  stop = Stop()
  ours, theirs = os.pipe()
  os.set_blocking(theirs, False)
  before = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
  # Without a handler of Python's the descriptor would not be written to.
  handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}

  def watch():
    while heard := os.read(ours, 1):
      if heard[0] in SIGNALS:
        stop._heard(heard[0])

  thread = threading.Thread(target=watch, daemon=True)
  thread.start()
  try:
    yield stop
  finally:
    signal.set_wakeup_fd(before)
    for number, handler in handlers.items():
      signal.signal(number, handler)
    os.close(theirs)
    thread.join()
    os.close(ours)
