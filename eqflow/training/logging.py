"""Where a run's numbers and pictures go: metrics.jsonl, TensorBoard files, and the terminal."""

from collections.abc import Iterator
import contextlib
import json
import math
import pathlib
import sys
import time
from typing import Any

from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2
import tqdm

from eqflow import files

_FLUSH_SECONDS = 10.0   # between two flushes of TensorBoard's file


class Board:
  """TensorBoard's events in a folder; events after `step` in older files no longer count.

  Written synchronously: tensorboardX's own thread dies when the disk is full, and the next write then
  blocks forever. An event that cannot be written is dropped, and the next one starts a new file.
  """

  def __init__(self, folder: pathlib.Path, *, step: int):
    self.folder, self.file, self.flushed, self.whole = folder, None, time.monotonic(), True
    self.add(step + 1, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

  def add(self, step: int, **what: Any) -> None:
    """An event of `step`: its `summary`, or its `session_log`."""
    try:
      if self.file is None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = event_file_writer.EventsWriter(str(self.folder / 'events'))
      self.file.write_event(event_pb2.Event(wall_time=time.time(), step=step, **what))
      if time.monotonic() - self.flushed > _FLUSH_SECONDS:
        self.file.flush()
        self.flushed = time.monotonic()
      self.whole = True
    except OSError as error:
      if self.whole:
        print(f'{self.folder} cannot be written ({error}): TensorBoard misses events until it can',
              flush=True)
      self.file, self.whole = None, False

  def close(self) -> None:
    """Flushes and closes the file."""
    with contextlib.suppress(OSError):
      if self.file is not None:
        self.file.close()


class Writer:
  """Writes scalars to metrics.jsonl and TensorBoard, and pictures to TensorBoard.

  Lines of steps after `step` are dropped first: a run that resumes from an older checkpoint writes
  them again. Only the first process writes.
  """

  def __init__(self, workdir: pathlib.Path, *, step: int = 0, active: bool = True):
    self.active = active
    if not active:
      return
    self.path = workdir / 'metrics.jsonl'
    self._drop_after(step)
    self.file = self.path.open('a')
    self.board = Board(workdir / 'tensorboard', step=step)

  def _drop_after(self, step):
    text = self.path.read_text(errors='replace') if self.path.exists() else ''
    lines = text.splitlines(keepends=True)
    kept = [line for line in lines if _step_of(line) <= step]
    with files.replacing(self.path) as file:
      file.write(''.join(kept).encode())

  def scalars(self, step: int, values: dict[str, float | int]) -> None:
    """One line of numbers at `step`, without those that are NaN: the mean over no steps is one.

    Raises OSError if the line cannot be written.
    """
    if self.active:
      values = {name: value for name, value in values.items() if math.isfinite(value)}
      try:
        self.file.write(json.dumps({'step': step, **values}) + '\n')
        self.file.flush()
      except OSError as error:
        raise OSError(f'{self.path} cannot be written ({error}): free disk space, or repair the disk, '
                      'and run the same command again') from error
      for name, value in values.items():
        self.board.add(step, summary=summary.scalar(name, value))

  def picture(self, step: int, name: str, picture: Any) -> None:
    """A uint8 picture [h, w, c] at `step`."""
    if self.active:
      self.board.add(step, summary=summary.image(name, picture, dataformats='HWC'))

  def close(self) -> None:
    """Flushes and closes both files."""
    if self.active:
      # A failed write has been reported already.
      with contextlib.suppress(OSError):
        self.file.close()
      self.board.close()


def _step_of(line):
  with contextlib.suppress(ValueError, KeyError, TypeError):
    if isinstance(step := json.loads(line)['step'], int):
      return step
  # Truncated by a crash, or written by another program: dropped with the lines after `step`.
  return math.inf


class Progress:
  """A tqdm bar with loss, examples/s and time left on a terminal; plain lines otherwise."""

  def __init__(self, total: int, done: int, *, active: bool = True):
    self.total, self.active = total, active
    self.bar = tqdm.tqdm(total=total, initial=done, unit='ex', unit_scale=True,
                         disable=not (active and sys.stderr.isatty()))

  def show(self, examples: int, loss: float | int, rate: float | int) -> None:
    """The state of the run: `rate` in examples/s."""
    if not self.bar.disable:
      self.bar.set_postfix(loss=f'{loss:.4f}')
      self.bar.update(examples - self.bar.n)
    elif self.active:
      left = (self.total - examples) / rate if rate else 0
      print(f'{examples:>12,} of {self.total:,} examples   loss {loss:.4f}   '
            f'{rate:,.0f} examples/s   {_duration(left)} left', flush=True)

  def say(self, line: str) -> None:
    """A line above the bar."""
    if self.active:
      tqdm.tqdm.write(line, file=sys.stdout)
      sys.stdout.flush()

  def close(self) -> None:
    """Leaves the bar on the screen as it is."""
    self.bar.close()


def _duration(seconds):
  """'42 s', '12 min', '3.4 h' or '5.6 days'."""
  for size, unit in ((86_400, 'days'), (3_600, 'h')):
    if seconds >= size:
      return f'{seconds / size:.1f} {unit}'
  return f'{seconds / 60:.0f} min' if seconds >= 120 else f'{seconds:.0f} s'


class Log:
  """The log of a training that starts at `step`: a Writer, a Progress, and the examples/s of both."""

  def __init__(self, workdir: pathlib.Path, *, step: int, batch: int, num_examples: int,
               active: bool = True):
    self.writer = Writer(workdir, step=step, active=active)
    self.progress = Progress(num_examples, step * batch, active=active)
    self._batch, self._step, self._clock = batch, step, time.perf_counter()

  def write(self, step: int, values: dict[str, float | int]) -> None:
    """The means since the last line, which have the `loss`, at `step`."""
    rate = (step - self._step) * self._batch / (time.perf_counter() - self._clock)
    examples = step * self._batch
    self.writer.scalars(step, {'examples': examples, **values, 'examples_per_second': rate})
    self.progress.show(examples, values['loss'], rate)
    self._step, self._clock = step, time.perf_counter()

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Time inside does not count in examples/s."""
    began = time.perf_counter()
    yield
    self._clock += time.perf_counter() - began

  def close(self) -> None:
    """Closes files and bar."""
    self.writer.close()
    self.progress.close()
