"""Where a run's numbers and pictures go: metrics.jsonl, TensorBoard files, and the terminal."""

import json
import math
import os
import pathlib
import sys
from typing import Any

import tensorboardX
import tqdm


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
    self.board = tensorboardX.SummaryWriter(
        str(workdir / 'tensorboard'), purge_step=step + 1, flush_secs=10)

  def _drop_after(self, step):
    lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
    kept = [line for line in lines if _step_of(line) <= step]
    partial = self.path.with_suffix('.partial')
    partial.write_text(''.join(kept))
    os.replace(partial, self.path)

  def scalars(self, step: int, values: dict[str, float | int]) -> None:
    """One line of numbers, at `step`; a mean over no steps, as where all were left out, is none."""
    if self.active:
      values = {name: value for name, value in values.items() if math.isfinite(value)}
      self.file.write(json.dumps({'step': step, **values}) + '\n')
      self.file.flush()
      for name, value in values.items():
        self.board.add_scalar(name, value, step)

  def picture(self, step: int, name: str, picture: Any) -> None:
    """A uint8 picture [h, w, c], at `step`."""
    if self.active:
      self.board.add_image(name, picture, step, dataformats='HWC')

  def close(self) -> None:
    """Flushes and closes both files."""
    if self.active:
      self.file.close()
      self.board.close()


def _step_of(line):
  try:
    return json.loads(line)['step']
  except (ValueError, KeyError, TypeError):
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
