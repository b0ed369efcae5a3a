"""Steps with NaN or infinity: they are skipped and counted; and the loss scale that float16 needs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax
import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, PyTree
import numpy as np

from eqflow.arrays import Number

# The rule of flax.training.dynamic_scale: the scale is doubled after so many finite steps in a row, and
# halved by each step that is not finite. Here averages and histogram are skipped with the update too.
GROWTH_INTERVAL = 2_000
LARGEST = 2.0**24


@flax.struct.dataclass
class Guard:
  """Counts of skipped steps and the loss scale: part of the train state, so that restarts keep them."""
  scale: Any               # float32, the loss is multiplied by it before the gradient is taken
  fin_steps: Any           # int32, finite steps since the scale changed
  skipped: Any             # uint32, steps skipped so far
  skipped_in_a_row: Any    # int32, steps skipped since the last finite one


class Health(NamedTuple):
  """The numbers that show whether a step was finite. All are float32 []."""
  loss: Any
  grad_norm: Any
  params_norm: Any         # of the new parameters
  skipped_in_a_row: Any


def start(scale: Number = 1.0) -> Guard:
  """The Guard of a new run."""
  return Guard(scale=jnp.float32(scale), fin_steps=jnp.int32(0), skipped=jnp.uint32(0),
               skipped_in_a_row=jnp.int32(0))


def counted(guard: Guard, finite: Bool[Array, '']) -> Guard:
  """The guard after one more step, which is skipped unless `finite`."""
  return guard.replace(skipped=guard.skipped + jnp.uint32(~finite),
                       skipped_in_a_row=jnp.where(finite, 0, guard.skipped_in_a_row + 1))


def rescaled(guard: Guard, finite: Bool[Array, '']) -> Guard:
  """`counted`; the scale is halved unless finite, and doubled after GROWTH_INTERVAL finite steps."""
  fin_steps = jnp.where(finite, guard.fin_steps + 1, 0)
  grown = jnp.where(fin_steps >= GROWTH_INTERVAL, 2 * guard.scale, guard.scale)
  scale = jnp.where(finite, jnp.minimum(grown, LARGEST), jnp.maximum(guard.scale / 2, 1))
  return counted(guard, finite).replace(
      scale=scale, fin_steps=jnp.where(fin_steps >= GROWTH_INTERVAL, 0, fin_steps))


def chosen(finite: Bool[Array, ''], new: PyTree, old: PyTree) -> PyTree:
  """new where finite, else old, leaf by leaf."""
  return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)


def check(step: int, health: Health, max_skipped: int, say: Callable) -> None:
  """Reports through `say` that a step was skipped, if its numbers are not finite.

  Raises FloatingPointError if more than `max_skipped` steps in a row were.
  """
  health = Health(*(np.asarray(number) for number in health))
  if np.isfinite(health[:3]).all():
    return
  found = (f'step {step:,}: loss {health.loss}, gradient norm {health.grad_norm}, parameter norm '
           f'{health.params_norm}')
  row = int(health.skipped_in_a_row)
  if max_skipped and row <= max_skipped:
    say(f'{found}: skipped, {row} in a row of at most {max_skipped}')
    return
  raise FloatingPointError(
      f'{found}. Nothing after the last checkpoint was written; lower config.optimizer.rate, set '
      f'config.optimizer.clip, compute in float32, or raise config.train.max_skipped={max_skipped}')
