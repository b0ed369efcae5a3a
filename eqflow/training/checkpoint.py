"""Saves and restores the train state through orbax: a checkpoint is complete or does not exist.

checkpoints/<step>/state is written by orbax, checkpoints/<step>/run is the identity of the run, and
checkpoints/<step>/manifest.json has the SHA-256 of every file. The folder is called <step>.partial
until all of that is on disk, and is then renamed atomically.
"""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import shutil
import threading
from typing import Any

from absl import logging
import jax
from jax import numpy as jnp
import orbax.checkpoint as ocp

from eqflow import files
from eqflow.training import checksums
from eqflow.training.runtime import multihost


class Checkpoints:
  """The checkpoints of one run: saves one at a time, in the background, and keeps the newest `keep`."""

  def __init__(self, folder: pathlib.Path, keep: int | None, run: str = ''):
    # Orbax logs every phase of every save.
    logging.get_absl_logger().setLevel(max(logging.get_absl_logger().level, 30))
    self.folder, self.keep, self.run = folder.absolute(), keep, run
    self._plain = files.plain(folder)   # for orbax
    # use_replica_parallel would slice each replicated array, and compile every slice.
    whole = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=False)))
    self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(type_handler_registry=whole))
    self._thread, self._error = None, None

  def steps(self) -> list[int]:
    """The steps that have a complete checkpoint, in ascending order."""
    return sorted(int(path.name) for path in self.folder.glob('*') if _is_step(path.name))

  def save(self, state: Any) -> None:
    """Starts to write the state of a step that has no checkpoint yet.

    Returns as soon as the state's buffers may be donated. Raises OSError if this save cannot start, or
    the one before it has failed.
    """
    self.wait()
    step = int(state.step)
    if step in multihost.broadcast(self.steps):
      return
    partial = self.folder / f'{step}.partial'
    fields = jax.tree.map(_apart, _nonempty(state))
    try:
      if jax.process_index() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
      self._orbax.save(self._plain / partial.name / 'state', args=ocp.args.PyTreeSave(fields))
    except Exception as error:
      self._error = error
      self.check()
    self._thread = threading.Thread(target=self._finish, args=(partial,))
    self._thread.start()

  def _finish(self, partial):
    try:
      self._orbax.wait_until_finished()
      if jax.process_index() == 0:
        (partial / 'run').write_text(self.run)
        checksums.write(partial)
        os.replace(partial, partial.with_suffix(''))
        files.sync(self.folder)
        self._prune()
    except BaseException as error:
      self._error = error

  def _prune(self):
    for step in self.steps()[:-self.keep] if self.keep else []:
      # Renamed first, so that a checkpoint is never half deleted.
      gone = self.folder / f'{step}.deleted'
      os.replace(self.folder / str(step), gone)
      shutil.rmtree(gone, ignore_errors=True)

  def check(self) -> None:
    """Raises OSError if the last save has failed; it leaves no checkpoint."""
    if self._error is not None:
      error, self._error = self._error, None
      raise OSError(f'a checkpoint could not be written to {self.folder} '
                    f'({type(error).__name__}: {_first_line(error)}): '
                    f'{_newest(self.steps())}; free disk space, or repair the disk, and run the same '
                    'command again') from error

  def wait(self) -> None:
    """Returns when the last save is on disk; raises as `check` does."""
    if self._thread is not None:
      self._thread.join()
      self._thread = None
    self.check()

  def restore(self, like: Any, *, repair: bool = False) -> Any | None:
    """The newest state with files that match their checksums, sharded like `like`, or None.

    Damaged checkpoints are reported and passed over; `repair` also renames them to <step>.damaged and
    deletes what interrupted saves have left. Raises ValueError if all are damaged, or if the newest
    undamaged one has another structure than `like` or belongs to another run.
    """
    steps, damaged = multihost.broadcast(self.steps), []
    for step in reversed(steps):
      folder = self.folder / str(step)
      # Every process must resume from the same step, also if it sees other files.
      damages = multihost.broadcast(lambda folder=folder: checksums.damages(folder))
      try:
        if not damages:
          _check_run(folder, self.run)
          found = _read(folder, self._plain / folder.name, like)
          if repair and jax.process_index() == 0:
            self._repair(damaged)
          return found
      except ValueError:
        if os.path.lexists(folder):
          raise
      if multihost.broadcast(lambda folder=folder: not os.path.lexists(folder)):
        # Deleted meanwhile by a running training, which has newer ones.
        return self.restore(like, repair=repair)
      damaged.append(step)
      if jax.process_index() == 0:
        print(f'the checkpoint {folder} is damaged and is not used: {"; ".join(damages[:3])}'
              f'{f", and {len(damages) - 3} more" if len(damages) > 3 else ""}', flush=True)
    if steps:
      raise ValueError(f'every checkpoint of {self.folder} is damaged ({", ".join(map(str, steps))}): '
                       'restore one from a copy, or choose another --workdir to start from scratch')
    return None

  def _repair(self, damaged):
    # Only after an undamaged one was read: else the next start would find none, and train from scratch.
    for step in damaged:
      aside = self.folder / f'{step}.damaged'
      shutil.rmtree(aside, ignore_errors=True)
      os.replace(self.folder / str(step), aside)
    for path in (*self.folder.glob('*.partial'), *self.folder.glob('*.deleted')):
      shutil.rmtree(path, ignore_errors=True)


def exists(workdir: pathlib.Path) -> bool:
  """Whether workdir/checkpoints has a complete checkpoint: a folder named by its step."""
  folder = workdir / 'checkpoints'
  return folder.is_dir() and any(_is_step(path.name) for path in folder.iterdir())


@contextlib.contextmanager
def open_checkpoints(workdir: pathlib.Path, *, keep: int | None,
                     run: str = '') -> Iterator[Checkpoints]:
  """The checkpoints in workdir/checkpoints; keeps the newest `keep`, or all if None.

  `run` is the identity of the run; if given, a checkpoint of another run is rejected. The end of the
  block waits for the last save, and raises OSError if that has failed.
  """
  checkpoints = Checkpoints(workdir / 'checkpoints', keep, run)
  try:
    yield checkpoints
  except BaseException:
    with contextlib.suppress(OSError):
      checkpoints.wait()
    raise
  checkpoints.wait()


def _is_step(name):
  return name.isdecimal() and str(int(name)) == name


def _apart(a):
  """An array that the next step, to which the state is donated, does not overwrite while it is written.

  Orbax copies from accelerators before its save returns; on CPU it writes from the original buffers.
  """
  on_cpu = any(device.platform == 'cpu' for device in a.sharding.device_set)
  return jnp.copy(a) if on_cpu else a


def _first_line(error):
  return (str(error).splitlines() or [''])[0][:300]


def _nonempty(state):
  """{field: value} of the fields that have leaves."""
  return {name: value for name, value in vars(state).items() if jax.tree.leaves(value)}


def _newest(steps):
  return f'the newest checkpoint is {steps[-1]}' if steps else 'there is no checkpoint yet'


def _check_run(folder, run):
  theirs = (folder / 'run').read_text()
  if run and theirs != run:
    raise ValueError(f'the checkpoint {folder} is of run {theirs!r}, this config is of run {run!r}: '
                     'restore its own checkpoints from a copy, or choose another --workdir')


def _read(folder, plain, like):
  target = jax.tree.map(
      lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), _nonempty(like))
  try:
    with ocp.StandardCheckpointer() as orbax:
      found = like.replace(**orbax.restore(plain / 'state', target))
  except Exception as error:
    raise ValueError(f'the checkpoint {folder} has another structure than the state of this config '
                     f'({_first_line(error)}): give the config and version it was made with, or choose '
                     'another --workdir') from error
  if int(found.step) != int(folder.name):
    raise ValueError(f'the checkpoint {folder} holds step {int(found.step)}: rename each folder to the '
                     'step that it holds')
  return found
