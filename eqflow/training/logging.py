"""Where a run's numbers and pictures go: metrics.jsonl, TensorBoard files, and the terminal."""

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

_FLUSHED = 10.0   # seconds from one time to the next that TensorBoard's file is brought to the disk


class Board:
  """TensorBoard's events in a folder, what came after `step` in older files being void.

  Written here and now: tensorboardX's own thread dies of a full disk, and whoever then has something to
  write waits for it without end. What cannot be written is left out, and a new file begun for the next.
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
      if time.monotonic() - self.flushed > _FLUSHED:
        self.file.flush()
        self.flushed = time.monotonic()
      self.whole = True
    except OSError as error:
      if self.whole:
        print(f'{self.folder} cannot be written ({error}): TensorBoard lacks what comes until it can',
              flush=True)
      self.file, self.whole = None, False

  def close(self) -> None:
    """Brings all to the disk that goes there."""
    with contextlib.suppress(OSError):
      if self.file is not None:
        self.file.close()


class Writer:
  """Writes scalars to metrics.jsonl and TensorBoard, and pictures to TensorBoard.

  Lines of steps after `step` are dropped first: a run that goes on from an older checkpoint makes
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
    """One line of numbers, at `step`; a mean over no steps, as where all were left out, is none.

    Raises OSError where the line cannot be written.
    """
    if self.active:
      values = {name: value for name, value in values.items() if math.isfinite(value)}
      try:
        self.file.write(json.dumps({'step': step, **values}) + '\n')
        self.file.flush()
      except OSError as error:
        raise OSError(f'{self.path} cannot be written ({error}): make room, or mend the disk, and run '
                      'the same command again') from error
      for name, value in values.items():
        self.board.add(step, summary=summary.scalar(name, value))

  def picture(self, step: int, name: str, picture: Any) -> None:
    """A uint8 picture [h, w, c], at `step`."""
    if self.active:
      self.board.add(step, summary=summary.image(name, picture, dataformats='HWC'))

  def close(self) -> None:
    """Flushes and closes both files."""
    if self.active:
      # Its last line is there, or its loss was told.
      with contextlib.suppress(OSError):
        self.file.close()
      self.board.close()


def _step_of(line):
  with contextlib.suppress(ValueError, KeyError, TypeError):
    if isinstance(step := json.loads(line)['step'], int):
      return step
  # Cut short by a crash, or no line of ours: it goes with the lines that are made again.
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
            f'{rate:,.0f} examples/s   {left:.0f} s left', flush=True)

  def say(self, line: str) -> None:
    """A line above the bar."""
    if self.active:
      tqdm.tqdm.write(line, file=sys.stdout)
      sys.stdout.flush()

  def close(self) -> None:
    """Leaves the bar as it stands."""
    self.bar.close()
