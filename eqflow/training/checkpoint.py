"""Saving and restoring the whole train state, through orbax."""

import pathlib
from typing import Any

from absl import logging
import jax
from jax import numpy as jnp
import orbax.checkpoint as ocp


def open_checkpoints(workdir: pathlib.Path, *, keep: int) -> ocp.CheckpointManager:
  """The run's checkpoints in workdir/checkpoints, of which the newest `keep` are kept."""
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
    manager.save(step, args=ocp.args.StandardSave(jax.tree.map(jnp.copy, state)))


def restore(manager: ocp.CheckpointManager, like: Any) -> Any | None:
  """The newest state, with the shapes and shardings of `like`; None where there is none."""
  step = manager.latest_step()
  if step is None:
    return None
  target = jax.tree.map(
      lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), like)
  return manager.restore(step, args=ocp.args.StandardRestore(target))
