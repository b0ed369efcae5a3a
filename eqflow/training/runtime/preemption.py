"""Signals that ask a program to stop: noticed in every phase, answered when nothing would be lost.

SIGTERM, SIGINT (Ctrl-C), SIGHUP (the terminal goes away; ignored under nohup), SIGUSR1, SIGUSR2 and
SIGXCPU (batch systems announce the end of a job with them) are answered alike. SIGQUIT and all others
keep their meaning, which is the end at once.

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

from eqflow.training.runtime import streams

# os.EX_TEMPFAIL: run the same command again to resume.
EXIT_CODE = 75
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2,
           signal.SIGXCPU)
# What to do after it.
AGAIN = 'run the same command again'
RESUME = f'{AGAIN} to resume from the last checkpoint'
_PATIENCE = 10.0   # seconds that printing the last line may take


class Stopped(Exception):
  """A signal stopped the run; its state is saved."""


class Stop:
  """Whether a signal has asked the run to stop, and whether it has unsaved work.

  `remedy` is what the last line then says to do.
  """

  def __init__(self, remedy: str = RESUME):
    self.asked, self.remedy = None, remedy     # the signal
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
      raise Stopped(signal.Signals(self.asked).name, self.remedy)

  def heard(self, number: int) -> None:
    """A signal has arrived: exits here and now unless the run is busy."""
    self.asked = number
    with self._lock:
      if self._busy > 0:
        return
      # Does not wait for the main thread, which may be inside C++ for minutes.
      end(signal.Signals(number).name, self.remedy)


def end(name: str, remedy: str = RESUME) -> None:
  """Exits with EXIT_CODE, after a line that names the signal and the remedy; kills child processes."""
  # The line may block on a full pipe that nobody reads: Ctrl-C may have ended the reader.
  late = threading.Timer(_PATIENCE, exit_now, (EXIT_CODE,))
  late.daemon = True
  late.start()
  with contextlib.suppress(OSError, ValueError):
    streams.last(f'stopped by {name}; {remedy}')
  with contextlib.suppress(OSError, ValueError):
    sys.stdout.flush()
  exit_now(EXIT_CODE)


def exit_now(code: int) -> NoReturn:
  """Exits with `code` without any cleanup; kills child processes."""
  for child in multiprocessing.active_children():
    child.kill()
  streams.end()
  os._exit(code)


def answer() -> None:
  """From here on a signal exits with EXIT_CODE: for the start of a program, with no work to lose."""
  for number in _answered():
    signal.signal(number, lambda number, _: end(signal.Signals(number).name, AGAIN))


def _answered():
  # nohup ignores this one for the programs that it starts.
  nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
  return [number for number in SIGNALS if not (nohup and number == signal.SIGHUP)]


@contextlib.contextmanager
def watched(remedy: str = RESUME) -> Iterator[Stop]:
  """A Stop that receives SIGNALS until the end of the block; call it in the main thread."""
  stop = Stop(remedy)
  read_end, write_end = os.pipe()
  os.set_blocking(write_end, False)
  before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
  # Without a Python handler nothing is written to the pipe.
  handlers = {number: signal.signal(number, lambda *_: None) for number in _answered()}

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
