"""The loop in which samples that have stopped leave their slot to those that wait.

What `descent.descend_refilled` and `descent.descend_until` run: fixed shapes, one compiled loop.
"""

from typing import Any, NamedTuple

import jax
from jax import numpy as jnp

from eqflow import arrays
from eqflow.fields import bind


class _Slots(NamedTuple):
  """What each slot works on: the sample's index, n where there is none, and how far it has come."""
  index: Any
  z: Any
  memory: Any
  steps: Any


def advance(solver: Any, field: Any, z: Any, memory: Any, k: Any, keys: Any) -> tuple[Any, Any]:
  """(z, memory) after the solver's step k [b] at rest, t = 0, with fold_in(keys, k)."""
  own = None if keys is None else arrays.fold(keys, k)
  return solver.step(field, z, memory, jnp.zeros(arrays.batch_size(z)), k, own)


@jax.jit(static_argnames='slots')
def refilled(solver: Any, network: Any, z: Any, condition: Any, keys: Any, max_steps: Any,
             threshold: Any, *, slots: int) -> tuple[Any, Any, Any]:
  """(z, steps, norms) of n samples z [n, ...], `slots` at a time, as `descent.descend_refilled`."""
  n = arrays.batch_size(z)
  # With a slot for each, rows stay where they are, and devices need nothing of one another.
  alone = slots == n

  def unfinished(carry):
    return jnp.any(carry[0].index < n)

  def own(tree, index):
    if alone:
      return tree
    # An empty slot goes on with zeros as its condition, and is not looked at.
    return jax.tree.map(lambda a: a.at[index].get(mode='fill', fill_value=0), tree)

  def written(found, stopped, index, now):
    if alone:
      return _where(stopped, now, found)
    # An index of n is dropped.
    done = jnp.where(stopped, index, n)
    return jax.tree.map(lambda all, one: all.at[done].set(one, mode='drop'), found, now)

  def step(carry):
    at, waiting, found = carry
    drawn = keys if alone or keys is None else keys[jnp.minimum(at.index, n - 1)]
    ahead, memory = advance(solver, bind(network, own(condition, at.index)), at.z, at.memory,
                            at.steps, drawn)
    seen, made = jnp.sqrt(arrays.square_norm(memory.slope)), at.steps + 1
    converged = seen < threshold
    stopped = (at.index < n) & (converged | (made >= max_steps))
    found = written(found, stopped, at.index, (_where(converged, at.z, ahead), made, seen))
    if alone:
      return _Slots(jnp.where(stopped, n, at.index), ahead, memory, made), waiting, found

    before = jnp.cumsum(stopped, dtype=jnp.int32)
    index = jnp.where(stopped, jnp.minimum(waiting + before - 1, n), at.index)
    fresh = jax.tree.map(lambda a: a[jnp.minimum(index, n - 1)], found[0])
    now = _Slots(index, _where(stopped, fresh, ahead), _where(stopped, solver.init(fresh), memory),
                 jnp.where(stopped, 0, made))
    return now, waiting + before[-1], found

  first = z if alone else jax.tree.map(lambda a: a[:slots], z)
  index, steps = jnp.arange(slots, dtype=jnp.int32), jnp.zeros(slots, jnp.int32)
  at = _Slots(index, first, solver.init(first), steps)
  norms = jnp.full(n, jnp.inf, arrays.square_norm(first).dtype)
  start = at, jnp.int32(slots), (z, jnp.zeros(n, jnp.int32), norms)
  return jax.lax.while_loop(unfinished, step, start)[2]


def _where(rows, tree, other):
  return jax.tree.map(lambda a, b: jnp.where(arrays.expand(rows, a), a, b), tree, other)
