"""SIGTERM and SIGINT: noticed in every phase of a run, and answered as soon as nothing would be lost.

Python runs a signal handler only between two bytecode instructions of the main thread, so not during a
compilation that takes minutes. Here a thread reads the signal's number from a pipe that C writes to.
"""

from collections.abc import Iterator
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from typing import NoReturn

# os.EX_TEMPFAIL: run the same command again to resume.
EXIT_CODE = 75
SIGNALS = signal.SIGTERM, signal.SIGINT
_PATIENCE = 5.0   # seconds that printing the last line may take


class Stopped(Exception):
  """A signal stopped the run; its state is saved."""


class Stop:
  """Whether a signal has asked the run to stop, and whether it has unsaved work."""

  def __init__(self):
    self.asked = None     # the signal
    self._busy = 0
    self._lock = threading.Lock()

  @contextlib.contextmanager
  def busy(self) -> Iterator[None]:
    """Inside, a signal only sets `asked`: the run looks at it, saves, and raises Stopped.

    The end of the block raises Stopped for a signal that came after the last look.
    """
    with self._changed(1):
      yield
    self.leave()

  @contextlib.contextmanager
  def interruptible(self) -> Iterator[None]:
    """Inside, a signal exits immediately, as it does outside `busy`; everything is already saved."""
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

  def agreed(self) -> bool:
    """Whether to stop after this step. Several processes agree through `multihost.Agreement`."""
    return self.asked is not None

  def leave(self) -> None:
    """Raises Stopped if a signal has asked for it."""
    if self.asked is not None:
      raise Stopped(signal.Signals(self.asked).name)

  def heard(self, number: int) -> None:
    """A signal has arrived: exits here and now unless the run is busy."""
    self.asked = number
    with self._lock:
      if self._busy > 0:
        return
      # Does not wait for the main thread, which may be inside C++ for minutes.
      end(signal.Signals(number).name)


def end(name: str) -> None:
  """Exits with EXIT_CODE, after a line that names the signal; kills child processes."""
  # The line may block on a full pipe that nobody reads: Ctrl-C may have ended the reader.
  late = threading.Timer(_PATIENCE, exit_now, (EXIT_CODE,))
  late.daemon = True
  late.start()
  with contextlib.suppress(OSError, ValueError):
    print(f'eqflow: stopped by {name}; run the same command again to resume from the last checkpoint',
          file=sys.stderr, flush=True)
  with contextlib.suppress(OSError, ValueError):
    sys.stdout.flush()
  exit_now(EXIT_CODE)


def exit_now(code: int) -> NoReturn:
  """Exits with `code` without any cleanup; kills child processes."""
  for child in multiprocessing.active_children():
    child.kill()
  os._exit(code)


def answer() -> None:
  """From here on a signal exits with EXIT_CODE: for the start of a program, with no work to lose."""
  for number in SIGNALS:
    signal.signal(number, lambda number, _: end(signal.Signals(number).name))


def unanswered() -> None:
  """Restores Python's own handlers."""
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def watched() -> Iterator[Stop]:
  """A Stop that receives SIGTERM and SIGINT until the end of the block; call it in the main thread."""
  stop = Stop()
  read_end, write_end = os.pipe()
  os.set_blocking(write_end, False)
  before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
  # Without a Python handler nothing is written to the pipe.
  handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}

  def watch():
    while received := os.read(read_end, 1):
      if received[0] in SIGNALS:
        stop.heard(received[0])

  thread = threading.Thread(target=watch, daemon=True)
  thread.start()
  try:
    yield stop
  finally:
    signal.set_wakeup_fd(before)
    for number, handler in handlers.items():
      signal.signal(number, handler)
    os.close(write_end)
    thread.join()
    os.close(read_end)
