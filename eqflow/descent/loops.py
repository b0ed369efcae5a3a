"""Loops of a descent: a number of steps, until a threshold, and with slots that are refilled."""

from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Int
import numpy as np

from eqflow import arrays
from eqflow.arrays import Data, Keys
from eqflow.fields import Network, Predict, bind
from eqflow.samplers import Solver


def evaluations(solver: Solver, steps: Any) -> Any:
  """How often the field is evaluated in so many steps: once each, by heun twice."""
  return steps * getattr(arrays.pytree(solver.step).func, 'evaluations', 1)


def descend(solver: Solver, field: Predict, z: Data, *, num_steps: int,
            keys: Keys | None = None) -> Data:
  """z after num_steps steps of the solver on the field, from z [b, ...]. One compiled scan.

  keys [b] feed a solver that draws: step k uses fold_in(keys, k). Raises ValueError where it has none,
  or another number than z has examples.
  """
  solver, z = _start(solver, z, keys=keys)
  _check_steps('num_steps', num_steps, least=0)
  return _descend(solver, arrays.pytree(field), z, keys, num_steps=num_steps)


@jax.jit(static_argnames='num_steps')
def _descend(solver, field, z, keys, *, num_steps):
  b = arrays.batch_size(z)

  def step(carry, k):
    return advance(solver, field, *carry, jnp.full(b, k), keys), None

  return jax.lax.scan(step, (z, solver.init(z)), jnp.arange(num_steps))[0][0]


def descend_until(solver: Solver, field: Predict, z: Data, *, max_steps: int, threshold: ArrayLike,
                  keys: Keys | None = None) -> tuple[Data, Int[Array, 'b'], Float[Array, 'b']]:
  """(z, steps, norms): each sample descends until |f| < threshold, or for max_steps steps.

  |f| is the norm over all coordinates where the solver evaluates the field (for Nesterov, ahead of
  z). The step that finds it small is counted, and z stays where it was before that step's move.
  norms are those last seen: norms >= threshold, or NaN, did not converge. Not
  reverse-differentiable: how long it runs depends on the samples.
  """
  return descend_refilled(
      solver, Partial(_unconditional, field=arrays.pytree(field)), z, None,
      slots=arrays.batch_size(z), max_steps=max_steps, threshold=threshold, keys=keys)


def _unconditional(z, t, condition, *, field):
  return field(z, t)


def descend_refilled(solver: Solver, network: Network, z: Data, condition: Any, *, slots: int,
                     max_steps: int, threshold: ArrayLike, keys: Keys | None = None
                     ) -> tuple[Data, Int[Array, 'n'], Float[Array, 'n']]:
  """descend_until of n samples z [n, ...], `slots` of them at a time.

  A sample that has stopped leaves its slot, at the next fourth step, to one that waits, so that steps
  saved are time saved: fixed shapes, one compiled loop. condition, a pytree [n, ...] or None, and
  keys [n] go with their samples, which do not depend on slots. On several devices, call it under
  `jax.shard_map`: each then has a queue of its own. Raises ValueError as `descend` does, and where
  condition has not n rows.
  """
  solver, z = _start(solver, z, keys=keys, condition=condition)
  if slots < 1:
    raise ValueError(f'slots={slots}: give the number of samples to descend at a time, 1 or more')
  _check_steps('max_steps', max_steps, least=1)
  if not arrays.is_traced(threshold) and np.isnan(threshold).any():
    raise ValueError(f'threshold={threshold}: give the norm of the field below which a sample stops')
  slots = min(slots, arrays.batch_size(z))
  return refilled(solver, arrays.pytree(network), z, condition, keys, max_steps, threshold,
                        slots=slots)


def _check_steps(name, steps, *, least):
  if not arrays.is_traced(steps) and (steps != int(steps) or steps < least):
    raise ValueError(f'{name}={steps}: give a whole number of steps, {least} or more')


def _start(solver, z, *, keys, condition=None):
  solver, z = Solver(*map(arrays.pytree, solver)), jax.tree.map(jnp.asarray, z)
  name = arrays.name_of(solver.step)
  if not hasattr(jax.eval_shape(solver.init, z), 'slope'):
    raise ValueError(f'{name} keeps no slope, so it does not descend: choose '
                     'gradient_descent, nesterov or from_optax, or sample along times')
  if keys is None and getattr(solver.step.func, 'draws', False):
    raise ValueError(f"{name.strip('_').removesuffix('_step')} draws noise: give keys=..., one key "
                     'per sample')
  n = arrays.batch_size(z)
  if not n:
    raise ValueError('z holds no sample: give one or more to descend')
  # A row that is not there would be read as the last one that is.
  for given, rows in (('condition', condition), ('keys', keys)):
    for leaf in jax.tree.leaves(rows):
      if jnp.shape(leaf)[:1] != (n,):
        raise ValueError(f'{given} has a leaf of the shape {jnp.shape(leaf)}, z holds {n} samples: '
                         f'give one row for each, [{n}, ...]')
  return solver, z



# Steps between hand-overs. What a network makes of its condition alone is made once for all of them,
# 3 % of a small one's time; a slot that stops meanwhile waits, 1.5 steps on average.
STEPS = 4


class _Slots(NamedTuple):
  """What each slot works on: the sample's index, n where there is none, and how far it has come."""
  index: Any
  z: Any
  memory: Any
  steps: Any
  norm: Any
  stopped: Any


def advance(solver: Any, field: Any, z: Any, memory: Any, k: Any, keys: Any) -> tuple[Any, Any]:
  """(z, memory) after the solver's step k [b] at rest, t = 0, with fold_in(keys, k)."""
  own = None if keys is None else arrays.fold(keys, k)
  return solver.step(field, z, memory, jnp.zeros(arrays.batch_size(z)), k, own)


@jax.jit(static_argnames='slots')
def refilled(solver: Any, network: Any, z: Any, condition: Any, keys: Any, max_steps: Any,
             threshold: Any, *, slots: int) -> tuple[Any, Any, Any]:
  """(z, steps, norms) of n samples z [n, ...], `slots` at a time, as `descent.descend_refilled`."""
  n = arrays.batch_size(z)

  def started(index, z):
    norm = jnp.full(slots, jnp.inf, arrays.square_norm(z).dtype)
    return _Slots(index, z, solver.init(z), jnp.zeros(slots, jnp.int32), norm, index >= n)

  def step(at, condition, keys):
    ahead, memory = advance(solver, bind(network, condition), at.z, at.memory, at.steps, keys)
    seen, made = jnp.sqrt(arrays.square_norm(memory.slope)), at.steps + 1
    converged = seen < threshold
    now = _Slots(at.index, _where(converged, at.z, ahead), memory, made, seen,
                 converged | (made >= max_steps))
    return _where(at.stopped, at, now)

  def handed_on(carry):
    at, waiting, found = carry
    # An empty slot has the last sample's, and is not looked at.
    own, drawn = jax.tree.map(lambda a: a[jnp.minimum(at.index, n - 1)], (condition, keys))
    at = jax.lax.fori_loop(0, STEPS, lambda _, at: step(at, own, drawn), at)
    # An index of n is dropped.
    done = jnp.where(at.stopped, at.index, n)
    found = jax.tree.map(lambda all, one: all.at[done].set(one, mode='drop'), found,
                         (at.z, at.steps, at.norm))
    before = jnp.cumsum(at.stopped, dtype=jnp.int32)
    index = jnp.where(at.stopped, jnp.minimum(waiting + before - 1, n), at.index)
    fresh = jax.tree.map(lambda a: a[jnp.minimum(index, n - 1)], found[0])
    return (_where(at.stopped, started(index, fresh), at),
            jnp.minimum(waiting + before[-1], n), found)

  working = lambda at: jnp.any(~at.stopped)
  index = jnp.arange(slots, dtype=jnp.int32)
  if slots == n:
    # With a slot for each, rows stay where they are, and devices need nothing of one another.
    at = jax.lax.while_loop(working, lambda at: step(at, condition, keys), started(index, z))
    return at.z, at.steps, at.norm
  at = started(index, jax.tree.map(lambda a: a[:slots], z))
  found = z, jnp.zeros(n, jnp.int32), jnp.full(n, jnp.inf, at.norm.dtype)
  start = at, jnp.int32(slots), found
  return jax.lax.while_loop(lambda carry: working(carry[0]), handed_on, start)[2]


def _where(rows, tree, other):
  return jax.tree.map(lambda a, b: jnp.where(arrays.expand(rows, a), a, b), tree, other)
