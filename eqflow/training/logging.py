"""Where a run's numbers and pictures go: metrics.jsonl, TensorBoard files, and the terminal."""

from collections.abc import Iterator
import contextlib
import json
import math
import os
import pathlib
import time
from typing import Any

from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2
import tqdm

from eqflow import files
from eqflow.training.runtime import streams

_FLUSH_SECONDS = 10.0   # between two flushes of TensorBoard's file


class Board:
  """TensorBoard's events in a folder; events after `step` in older files no longer count.

  Written synchronously: tensorboardX's own thread dies when the disk is full, and the next write then
  blocks forever. An event that cannot be written is dropped, and the next one starts a new file.
  """

  def __init__(self, folder: pathlib.Path, *, step: int):
    self.folder, self.file, self.flushed, self.whole = folder, None, time.monotonic(), True
    # tensorboardX names a file by its second, and would empty that of a session in the same second.
    self.suffix = f'.{len(list(folder.glob("*"))):06}'
    self.add(step + 1, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

  def add(self, step: int, **what: Any) -> None:
    """An event of `step`: its `summary`, or its `session_log`."""
    try:
      if self.file is None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = event_file_writer.EventsWriter(str(self.folder / 'events'), self.suffix)
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

  def flush(self) -> None:
    """Hands the events so far to the system, which keeps them if this process is killed."""
    with contextlib.suppress(OSError):
      if self.file is not None:
        self.file.flush()

  def close(self) -> None:
    """Flushes and closes the file."""
    with contextlib.suppress(OSError):
      if self.file is not None:
        self.file.close()


class Writer:
  """Writes scalars to metrics.jsonl and TensorBoard, and pictures to TensorBoard.

  Lines of steps after `step`, and lines that cannot be read, are dropped first: a run that resumes from
  the checkpoint of `step` writes them again. Only the first process writes. `seconds` is what the last
  line says, or 0.
  """

  def __init__(self, workdir: pathlib.Path, *, step: int = 0, active: bool = True):
    self.active, self.seconds = active, 0.0
    if not active:
      return
    self.path = workdir / 'metrics.jsonl'
    self._drop_after(step)
    self.file = self.path.open('a')
    self.board = Board(workdir / 'tensorboard', step=step)

  def _drop_after(self, step):
    lines = self.path.read_text(errors='replace').splitlines() if self.path.exists() else []
    rows = [row for row in map(_row, lines) if row is not None]
    if cut := len(lines) - len(rows):
      print(f'{self.path}: {cut} line(s) cannot be read and are dropped; the lines after step {step:,} '
            'are written again', flush=True)
    kept = [row for row in rows if row['step'] <= step]
    files.write_text(self.path, ''.join(json.dumps(row) + '\n' for row in kept))
    self.seconds = kept[-1].get('seconds', 0.0) if kept else 0.0

  def scalars(self, step: int, values: dict[str, float | int]) -> None:
    """One line of numbers at `step`, without those that are NaN: the mean over no steps is one.

    Raises OSError if the line cannot be written.
    """
    if self.active:
      values = {name: value for name, value in values.items() if math.isfinite(value)}
      with self._writing():
        self.file.write(json.dumps({'step': step, **values}) + '\n')
        self.file.flush()
      for name, value in values.items():
        self.board.add(step, summary=summary.scalar(name, value))

  def picture(self, step: int, name: str, picture: Any) -> None:
    """A uint8 picture [h, w, c] at `step`."""
    if self.active:
      self.board.add(step, summary=summary.image(name, picture, dataformats='HWC'))
      self.board.flush()

  def sync(self) -> None:
    """Returns when all lines are on disk: a checkpoint must not be newer than the log."""
    if self.active:
      self.board.flush()
      with self._writing():
        os.fsync(self.file.fileno())

  @contextlib.contextmanager
  def _writing(self):
    try:
      yield
    except OSError as error:
      raise OSError(f'{self.path} cannot be written ({error}): free disk space, or repair the disk, '
                    'and run the same command again') from error

  def close(self) -> None:
    """Flushes and closes both files."""
    if self.active:
      # A failed write has been reported already.
      with contextlib.suppress(OSError):
        self.file.close()
      self.board.close()


def _row(line):
  """The numbers of a line, or None: truncated by a crash, or written by another program."""
  with contextlib.suppress(ValueError, KeyError, TypeError):
    row = json.loads(line)
    if isinstance(row['step'], int):
      return row
  return None


class Progress:
  """A tqdm bar with loss and learning rate on a terminal; plain lines with times otherwise."""

  def __init__(self, total: int, done: int, *, active: bool = True):
    self.total, self.active = total, active
    self.bar = tqdm.tqdm(total=total, initial=done, unit='ex', unit_scale=True, file=streams.terminal(),
                         disable=not (active and streams.terminal().isatty()))

  def show(self, values: dict[str, float | int]) -> None:
    """The state of the run, from the numbers of a line of the log."""
    examples, rate = values['examples'], values['examples_per_second']
    loss, learning = f'{values["loss"]:.4f}', f'{values["learning_rate"]:.2g}'
    if not self.bar.disable:
      self.bar.set_postfix({'loss': loss, 'learning rate': learning})
      self.bar.update(examples - self.bar.n)
    elif self.active:
      left = (self.total - examples) / rate if rate else 0
      print(f'{examples:>12,} of {self.total:,} examples   loss {loss}   learning rate {learning}   '
            f'{rate:,.0f} examples/s   {_duration(values["seconds"])} so far, {_duration(left)} left',
            flush=True)

  def say(self, line: str) -> None:
    """A line above the bar."""
    if self.active:
      with tqdm.tqdm.external_write_mode(file=streams.terminal()):
        print(line, flush=True)

  def close(self) -> None:
    """Leaves the bar on the screen as it is."""
    self.bar.close()


def _duration(seconds):
  """'42 s', '12 min', '3.4 h' or '5.6 days'."""
  for size, unit in ((86_400, 'days'), (3_600, 'h')):
    if seconds >= size:
      return f'{seconds / size:.1f} {unit}'
  return f'{seconds / 60:.0f} min' if seconds >= 120 else f'{seconds:.0f} s'


# What depends on the clock. All other numbers of a line are the same, bit by bit, however often a run
# was killed or stopped; other devices or processes change the order of sums, and so the last bits.
CLOCKED = 'seconds', 'examples_per_second'


class Log:
  """The log of a training from `step` to `until`: a Writer, a Progress, and the times of both."""

  def __init__(self, workdir: pathlib.Path, *, step: int, until: int, batch: int, active: bool = True):
    self.writer = Writer(workdir, step=step, active=active)
    self.progress = Progress(until * batch, step * batch, active=active)
    self._batch, self._step, self._clock = batch, step, time.perf_counter()
    # Since the first step, over all sessions, without what was lost and between them.
    self._began = self._clock - self.writer.seconds

  def write(self, step: int, values: dict[str, float | int]) -> None:
    """One line at `step`: the means since the last line, the learning rate, and the times."""
    now = time.perf_counter()
    rate = (step - self._step) * self._batch / (now - self._clock)
    values = {'examples': step * self._batch, **values,
              'seconds': round(now - self._began, 3), 'examples_per_second': rate}
    self.writer.scalars(step, values)
    self.progress.show(values)
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
