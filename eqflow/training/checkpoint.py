"""Saving and restoring the whole train state, through orbax."""

import json
import pathlib
from typing import Any

from absl import logging
import jax
from jax import numpy as jnp
import orbax.checkpoint as ocp


def exists(workdir: pathlib.Path) -> bool:
  """Whether a whole checkpoint stands in workdir/checkpoints: a folder named by its step."""
  folder = workdir / 'checkpoints'
  return folder.is_dir() and any(path.name.isdecimal() for path in folder.iterdir())


def open_checkpoints(workdir: pathlib.Path, *, keep: int | None) -> ocp.CheckpointManager:
  """The run's checkpoints in workdir/checkpoints, of which the newest `keep` (None: all) are kept."""
  # Orbax tells every step of every save; a run's own log says what matters.
  logging.get_absl_logger().setLevel(max(logging.get_absl_logger().level, 30))
  options = ocp.CheckpointManagerOptions(
      max_to_keep=keep, create=True, enable_async_checkpointing=True)
  return ocp.CheckpointManager((workdir / 'checkpoints').absolute(), options=options)


def save(manager: ocp.CheckpointManager, state: Any) -> None:
  """Starts writing the state under its step; a step already there is left alone."""
  step = int(state.step)
  if step not in manager.all_steps():
    # A copy: the next update takes the state's own buffers while the write still runs.
    manager.save(step, args=ocp.args.StandardSave(jax.tree.map(jnp.copy, _held(state))))


def _held(state):
  """{field: value} of the fields that hold anything: an empty one changes no checkpoint."""
  return {name: value for name, value in vars(state).items() if jax.tree.leaves(value)}


def restore(manager: ocp.CheckpointManager, like: Any) -> Any | None:
  """The newest state, with the shapes and shardings of `like`; None where there is none.

  Raises ValueError naming a checkpoint that cannot be read.
  """
  step = manager.latest_step()
  if step is None:
    return None
  target = jax.tree.map(
      lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), _held(like))
  try:
    if 'guard' in target and not _guarded(manager.directory / str(step)):
      del target['guard']   # Written before runs counted the steps that they leave out: none were.
    return like.replace(**manager.restore(step, args=ocp.args.StandardRestore(target)))
  except Exception as error:
    older = [other for other in manager.all_steps() if other != step]
    instead = f'to go on from step {max(older)}' if older else 'to start anew'
    raise ValueError(f'the checkpoint {manager.directory / str(step)} cannot be read '
                     f'({str(error).splitlines()[0][:200]}): delete that folder {instead}') from error


def _guarded(folder):
  """Whether the checkpoint in a folder names a guard among what it holds."""
  held = json.loads((folder / 'default/_METADATA').read_text())['tree_metadata']
  return any(path.startswith("('guard'") for path in held)
