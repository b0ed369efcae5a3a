"""The loop in which samples that have stopped leave their slot to those that wait.

What `descent.descend_refilled` and `descent.descend_until` run: fixed shapes, one compiled loop.
"""

from typing import Any, NamedTuple

import jax
from jax import numpy as jnp

from eqflow import arrays
from eqflow.fields import bind


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
