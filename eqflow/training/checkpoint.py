"""Saving and restoring the whole train state, through orbax: a checkpoint is whole, or it is none.

checkpoints/<step>/state is as orbax writes it, checkpoints/<step>/run is the name of the run, and
checkpoints/<step>/manifest.json says what every file of it is. It is called <step>.partial until all of
that is on disk, and takes its name in one instant.
"""

from collections.abc import Iterator
import contextlib
import json
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
  """The checkpoints of one run. Saves one at a time, in the background, and keeps the newest `keep`."""

  def __init__(self, folder: pathlib.Path, keep: int | None, run: str = ''):
    # Orbax tells every step of every save; a run's own log says what matters.
    logging.get_absl_logger().setLevel(max(logging.get_absl_logger().level, 30))
    self.folder, self.keep, self.run = folder.absolute(), keep, run
    # Replicas are not cut into parts, one for each device to write: every cut would be compiled.
    whole = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=False)))
    self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(type_handler_registry=whole))
    self._thread, self._error = None, None

  def steps(self) -> list[int]:
    """The steps whose checkpoints stand, rising."""
    return sorted(int(path.name) for path in self.folder.glob('*') if _is_step(path.name))

  def save(self, state: Any) -> None:
    """Starts writing the state under its step; a step already there is left alone.

    Returns when the state may be changed. Raises what the save before it failed of, or its own start.
    """
    self.wait()
    step = int(state.step)
    if step in multihost.broadcast(self.steps):
      return
    partial = self.folder / f'{step}.partial'
    held = jax.tree.map(_apart, _held(state))
    try:
      if jax.process_index() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
      self._orbax.save(partial / 'state', args=ocp.args.PyTreeSave(held))
    except Exception as error:
      self._error = error
      self.check()
    self._thread = threading.Thread(target=self._finish, args=(partial,))
    self._thread.start()

  def _finish(self, partial):
    try:
      self._orbax.wait_until_finished()
      if jax.process_index() == 0:
        if self.run:
          (partial / 'run').write_text(self.run)
        checksums.write(partial)
        os.replace(partial, partial.with_suffix(''))
        files.sync(self.folder)
        self._prune()
    except BaseException as error:
      self._error = error

  def _prune(self):
    for step in self.steps()[:-self.keep] if self.keep else []:
      # Never a checkpoint that is half there: it loses its name first.
      gone = self.folder / f'{step}.deleted'
      os.replace(self.folder / str(step), gone)
      shutil.rmtree(gone, ignore_errors=True)

  def check(self) -> None:
    """Raises OSError where the last save has failed: nothing of it counts."""
    if self._error is not None:
      error, self._error = self._error, None
      raise OSError(f'a checkpoint could not be written to {self.folder} '
                    f'({type(error).__name__}: {_first_line(error)}): '
                    f'{_standing(self.steps())}; make room, or mend the disk, and run the same command '
                    'again') from error

  def wait(self) -> None:
    """Returns when the last save stands; raises as `check` does."""
    if self._thread is not None:
      self._thread.join()
      self._thread = None
    self.check()

  def restore(self, like: Any, *, mend: bool = False) -> Any | None:
    """The newest state whose files are as they were written, placed like `like`; None without any.

    Checkpoints that are damaged are told and passed over, with `mend` also renamed <step>.damaged, and
    what killed saves have left is removed. Raises ValueError where all are damaged, however often it is
    asked, or where one that is whole is not a state like this, or of another run.
    """
    steps, damaged = multihost.broadcast(self.steps), []
    for step in reversed(steps):
      folder = self.folder / str(step)
      # All must go on from the same step, whatever each would find.
      bad = multihost.broadcast(lambda folder=folder: _damages(folder))
      try:
        if not bad:
          _check_run(folder, self.run)
          found = _read(folder, like)
          if mend and jax.process_index() == 0:
            self._mend(damaged)
          return found
      except ValueError:
        if os.path.lexists(folder):
          raise
      if multihost.broadcast(lambda folder=folder: not os.path.lexists(folder)):
        # A training beside this has newer ones.
        return self.restore(like, mend=mend)
      damaged.append(step)
      if jax.process_index() == 0:
        print(f'the checkpoint {folder} is damaged and is not used: {"; ".join(bad[:3])}'
              f'{f", and {len(bad) - 3} more" if len(bad) > 3 else ""}', flush=True)
    if steps:
      raise ValueError(f'every checkpoint of {self.folder} is damaged ({_named(steps)}): restore one '
                       'from a copy; to start anew, give another --workdir')
    return None

  def _mend(self, damaged):
    # Only where a whole one stands: else the next start would find none, and begin anew.
    for step in damaged:
      aside = self.folder / f'{step}.damaged'
      shutil.rmtree(aside, ignore_errors=True)
      os.replace(self.folder / str(step), aside)
    for path in (*self.folder.glob('*.partial'), *self.folder.glob('*.deleted')):
      shutil.rmtree(path, ignore_errors=True)


def exists(workdir: pathlib.Path) -> bool:
  """Whether a whole checkpoint stands in workdir/checkpoints: a folder named by its step."""
  folder = workdir / 'checkpoints'
  return folder.is_dir() and any(_is_step(path.name) for path in folder.iterdir())


@contextlib.contextmanager
def open_checkpoints(workdir: pathlib.Path, *, keep: int | None,
                     run: str = '') -> Iterator[Checkpoints]:
  """The run's checkpoints in workdir/checkpoints, of which the newest `keep` (None: all) are kept.

  `run` is what the run is called: those of another name are not restored, where both have one. Left in
  peace, it waits for the last save, and raises what that failed of.
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
  """An array that the next update, which takes the state's buffers, leaves alone while it is written.

  Orbax copies from other devices before its save returns; on a CPU it writes from where they are.
  """
  on_cpu = any(device.platform == 'cpu' for device in a.sharding.device_set)
  return jnp.copy(a) if on_cpu else a


def _first_line(error):
  return (str(error).splitlines() or [''])[0][:300]


def _held(state):
  """{field: value} of the fields that hold anything: an empty one changes no checkpoint."""
  return {name: value for name, value in vars(state).items() if jax.tree.leaves(value)}


def _standing(steps):
  return f'the newest that stands is {steps[-1]}' if steps else 'none stands yet'


def _named(steps):
  return ', '.join(map(str, steps))


def _damages(folder):
  if not (folder / checksums.NAME).exists() and _item(folder).name == 'default':
    return []   # Written before checkpoints had a manifest.
  return checksums.damages(folder)


def _check_run(folder, run):
  path = folder / 'run'
  theirs = path.read_text() if path.exists() else ''
  if run and theirs and theirs != run:
    raise ValueError(f'the checkpoint {folder} is whole, but of run {theirs!r}, and this config is '
                     f'that of {run!r}: restore its own from a copy, or give another --workdir')


def _item(folder):
  """Where orbax's part is; it had another name before checkpoints had a manifest."""
  old = folder / 'default'
  return old if old.is_dir() and not (folder / 'state').exists() else folder / 'state'


def _read(folder, like):
  target = jax.tree.map(
      lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), _held(like))
  try:
    if 'guard' in target and not _guarded(_item(folder)):
      del target['guard']   # Written before runs counted the steps that they leave out: none were.
    with ocp.StandardCheckpointer() as orbax:
      found = like.replace(**orbax.restore(_item(folder), target))
  except Exception as error:
    raise ValueError(f'the checkpoint {folder} is whole, but is no state of this config and version '
                     f'({_first_line(error)}): give the config it was made with, or '
                     'another --workdir') from error
  if int(found.step) != int(folder.name):
    raise ValueError(f'the checkpoint {folder} holds step {int(found.step)}: folders were exchanged; '
                     'give each its own name')
  return found


def _guarded(item):
  """Whether a checkpoint names a guard among what it holds."""
  held = json.loads((item / '_METADATA').read_text())['tree_metadata']
  return any(path.startswith("('guard'") for path in held)
