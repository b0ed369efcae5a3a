"""Loops of a descent: a number of iterations, until a threshold, and continuous batching."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Int, Num, PyTree
import numpy as np

from eqflow import arrays
from eqflow.arrays import Data, Keys, where
from eqflow.descent.base import Descent, State
from eqflow.fields import Network, Predict, at_rest, bind

# z, and the iterations and last norm of each sample.
Stopped = tuple[Data, Int[Array, 'b'], Float[Array, 'b']]


def descend(descent: Descent, field: Predict, z: Data, *, num_steps: int,
            keys: Keys | None = None) -> Data:
  """z [b, ...] after num_steps iterations on the field. One compiled scan.

  The field is evaluated at t = 0: it does not depend on time. A stochastic descent needs keys [b];
  iteration k uses fold_in(keys, k). Raises ValueError where they are missing.
  """
  return _descended(descent, field, z, num_steps, keys, path=False)


def descend_path(descent: Descent, field: Predict, z: Data, *, num_steps: int,
                 keys: Keys | None = None) -> PyTree[Num[Array, 'k b ...']]:
  """z after 0, 1, ..., num_steps iterations, [num_steps + 1, b, ...]. Raises as `descend`."""
  return _descended(descent, field, z, num_steps, keys, path=True)


def _descended(descent, field, z, num_steps, keys, *, path):
  arrays.check_functions(field=field)
  z = _checked(descent, z, keys=keys)
  _check_steps('num_steps', num_steps, least=0)
  return _descend(arrays.pytree(descent.init), arrays.pytree(descent.step), arrays.pytree(field), z,
                  keys, num_steps=num_steps, path=path)


@jax.jit(static_argnames=('num_steps', 'path'))
def _descend(init, step, field, z, keys, *, num_steps, path):
  def body(carry, _):
    z, state = _iterated(step, field, *carry, keys)
    return (z, state), z if path else None

  (end, _), states = jax.lax.scan(body, (z, _started(init, z)), length=num_steps)
  return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), z, states) if path else end


def _started(init, z):
  state = init(z)
  if not isinstance(state, State):
    raise TypeError(f'init of the Descent returned a {type(state).__name__}: return a descent.State, '
                    'such as descent.at_start(z), with its own numbers in `inner`')
  return state


def _iterated(step, field, z, state, keys):
  """(z, state) after one iteration on the field at rest, with fold_in(keys, count)."""
  own = None if keys is None else arrays.fold_number(keys, state.count)
  return step(Partial(at_rest, field), z, state, own)


def descend_until(descent: Descent, field: Predict, z: Data, *, max_steps: int, threshold: ArrayLike,
                  keys: Keys | None = None) -> Stopped:
  """(z, iterations, norms): each sample descends until |f| < threshold, or for max_steps iterations.

  |f| is the norm over all elements where the method evaluates the field (for Nesterov, ahead of z);
  threshold is one number, or one for each sample. The iteration that finds the norm small is counted,
  and z is returned without its move. norms are the last ones: norms >= threshold, or NaN, did not
  converge. Differentiable in forward mode only, since the number of iterations depends on the samples.
  """
  arrays.check_functions(field=field)
  return descend_refilled(
      descent, Partial(_unconditional, field=arrays.pytree(field)), z, None,
      slots=max(arrays.batch_size(z), 1), max_steps=max_steps, threshold=threshold, keys=keys)


def _unconditional(z, t, condition, *, field):
  return field(z, t)


def descend_refilled(descent: Descent, network: Network, z: Data, condition: Any, *, slots: int,
                     max_steps: int, threshold: ArrayLike, keys: Keys | None = None) -> Stopped:
  """descend_until for n samples z [n, ...], `slots` at a time: continuous batching.

  A converged sample's slot is refilled from the queue at every fourth iteration, so that fewer
  iterations take less time: fixed shapes, one compiled loop. condition, a pytree [n, ...] or None, keys
  [n] and threshold, a number or [n], stay with their samples; the results do not depend on slots. On
  several devices, call it under `jax.shard_map`: each then has its own queue. Raises ValueError like
  `descend`, and unless condition has n rows.
  """
  arrays.check_functions(network=network)
  arrays.check_scalars(slots=slots, threshold=threshold)
  z = _checked(descent, z, keys=keys, condition=condition)
  if slots < 1:
    raise ValueError(f'slots={slots}: give the number of samples to descend at a time, 1 or more')
  _check_steps('max_steps', max_steps, least=1)
  n = arrays.batch_size(z)
  if jnp.ndim(threshold):
    arrays.check_numbers('threshold', threshold, z)
  if not arrays.is_traced(threshold) and np.isnan(threshold).any():
    raise ValueError(f'threshold={threshold}: give the norm of the field below which a sample stops')
  return _refilled(arrays.pytree(descent.init), arrays.pytree(descent.step), arrays.pytree(network), z,
                   condition, keys, max_steps, jnp.broadcast_to(threshold, n), slots=min(slots, n))


def _check_steps(name, steps, *, least):
  arrays.check_scalars(**{name: steps})
  if not arrays.is_traced(steps) and (steps != int(steps) or steps < least):
    raise ValueError(f'{name}={steps}: give a whole number, {least} or more')


def _checked(descent, z, *, keys, condition=None):
  """z as arrays. Raises where the descent is not one, and unless keys and condition have z's rows."""
  if not isinstance(descent, Descent):
    name = descent.traits.name if hasattr(descent, 'traits') else repr(descent)
    raise TypeError(f'{name} is a {type(descent).__name__}, but only a Descent descends a field: run a '
                    'Solver with samplers.sample, along times')
  if keys is None and descent.traits.stochastic:
    raise ValueError(f'{descent.traits.name} is stochastic: pass keys, one per sample')
  z = jax.tree.map(jnp.asarray, z)
  arrays.check_rows('condition', condition, z)
  if keys is not None:
    arrays.check_keys(keys, arrays.batch_size(z))
  return z


# Iterations between refills. What a network computes from its condition alone is computed once for all
# of them, 3 % of a small one's time; a slot that stops earlier waits, 1.5 iterations on average.
STEPS = 4


class _Slots(NamedTuple):
  """What each slot works on: the sample's index (n: the slot is empty), and its progress."""
  index: Any
  z: Any
  state: Any
  norm: Any
  stopped: Any


@jax.jit(static_argnames='slots')
def _refilled(*given, slots):
  return arrays.forward_only('a descent until a threshold', _stopped(*given, slots=slots))


def _stopped(init, step, network, z, condition, keys, max_steps, threshold, *, slots):
  """(z, iterations, norms) of n samples z [n, ...], `slots` at a time: `descend_refilled`, compiled."""
  n = arrays.batch_size(z)

  def started(index, z):
    norm = jnp.full(slots, jnp.inf, arrays.square_norm(z).dtype)
    return _Slots(index, z, _started(init, z), norm, index >= n)

  def iterated(at, condition, keys, threshold):
    ahead, state = _iterated(step, bind(network, condition), at.z, at.state, keys)
    norm = jnp.sqrt(arrays.square_norm(state.slope))
    converged = norm < threshold
    now = _Slots(at.index, where(converged, at.z, ahead), state, norm,
                 converged | (state.count >= max_steps))
    return where(at.stopped, at, now)

  def refilled(carry):
    at, waiting, found = carry
    # An empty slot works on the last sample's condition and keys; its results are dropped.
    own = jax.tree.map(lambda a: a[jnp.minimum(at.index, n - 1)], (condition, keys, threshold))
    at = jax.lax.fori_loop(0, STEPS, lambda _, at: iterated(at, *own), at)
    # Index n is out of range, and dropped.
    done = jnp.where(at.stopped, at.index, n)
    found = jax.tree.map(lambda all, one: all.at[done].set(one, mode='drop'), found,
                         (at.z, at.state.count, at.norm))
    before = jnp.cumsum(at.stopped, dtype=jnp.int32)
    index = jnp.where(at.stopped, jnp.minimum(waiting + before - 1, n), at.index)
    fresh = jax.tree.map(lambda a: a[jnp.minimum(index, n - 1)], found[0])
    return (where(at.stopped, started(index, fresh), at),
            jnp.minimum(waiting + before[-1], n), found)

  working = lambda at: jnp.any(~at.stopped)
  index = jnp.arange(slots, dtype=jnp.int32)
  if slots == n:
    # With a slot for each sample, rows stay where they are, and devices need not communicate.
    body = lambda at: iterated(at, condition, keys, threshold)
    at = jax.lax.while_loop(working, body, started(index, z))
    return at.z, at.state.count, at.norm
  at = started(index, jax.tree.map(lambda a: a[:slots], z))
  found = z, jnp.zeros(n, at.state.count.dtype), jnp.full(n, jnp.inf, at.norm.dtype)
  start = at, jnp.int32(slots), found
  return jax.lax.while_loop(lambda carry: working(carry[0]), refilled, start)[2]
