"""What becomes of a step whose numbers are not finite, and of the scale that float16 gradients need."""

from collections.abc import Callable
from typing import Any

import flax
import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, PyTree
import numpy as np

from eqflow.arrays import Number

# A scale is doubled after so many updates in a row, and halved where an update is left out.
PATIENCE = 2_000
LARGEST = 2.0**24


@flax.struct.dataclass
class Guard:
  """What a run remembers of its bad steps: a part of the train state, so that restarts keep count."""
  scale: Any     # float32, the loss is multiplied by it before the gradient is taken
  steady: Any    # int32, updates made since the scale changed
  skipped: Any   # uint32, updates left out so far
  row: Any       # int32, of them those after the last that was made


def start(scale: Number = 1.0) -> Guard:
  """Nothing left out yet."""
  return Guard(scale=jnp.float32(scale), steady=jnp.int32(0), skipped=jnp.uint32(0),
               row=jnp.int32(0))


def counted(guard: Guard, finite: Bool[Array, '']) -> Guard:
  """The guard after one more step, which was finite or is left out."""
  return guard.replace(skipped=guard.skipped + jnp.uint32(~finite),
                       row=jnp.where(finite, 0, guard.row + 1))


def rescaled(guard: Guard, finite: Bool[Array, '']) -> Guard:
  """The guard with scale/2 after a step left out, at least 1; 2 scale after PATIENCE good ones."""
  steady = jnp.where(finite, guard.steady + 1, 0)
  grown = jnp.where(steady >= PATIENCE, 2 * guard.scale, guard.scale)
  scale = jnp.where(finite, jnp.minimum(grown, LARGEST), jnp.maximum(guard.scale / 2, 1))
  return guard.replace(scale=scale, steady=jnp.where(steady >= PATIENCE, 0, steady))


def chosen(finite: Bool[Array, ''], new: PyTree, old: PyTree) -> PyTree:
  """new where finite, else old, leaf by leaf."""
  return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)


def check_health(health: Any, step: int, most: int, say: Callable) -> None:
  """Says where loss, gradient or new parameters were not finite, and the step was left out.

  Raises FloatingPointError where more than `most` were, one after another.
  """
  if health is None:
    return
  loss, gradient, params, row = np.asarray(health)[:4]
  if np.isfinite([loss, gradient, params]).all():
    return
  found = f'step {step}: loss {loss}, gradient norm {gradient}, parameter norm {params}'
  if most and row <= most:
    say(f'{found}: left out, {row:.0f} in a row of at most {most}')
    return
  raise FloatingPointError(
      f'{found}. Nothing after the last checkpoint was written; lower config.optimizer.rate, set '
      f'config.optimizer.clip, compute in float32, or leave out more than '
      f'config.train.max_skipped={most} such steps in a row')
