"""Sampling by optimization: descend a field, such as that of Equilibrium Matching, to its zeros.

The solvers are those of `solver`, their steps blind to time: predict(z, 0) is the field. Every leaf
of their memory has a leading [b], so samples never couple, and `memory.slope` is the field where it
was last evaluated.
"""

from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Int

from eqflow import arrays
from eqflow.arrays import Data, Static, combine
from eqflow.fields import Predict
from eqflow.solver import Solver


class Point(NamedTuple):
  """The memory of gradient descent."""
  slope: Data


class Moving(NamedTuple):
  """The memory of Nesterov's method: where z was a step ago."""
  previous: Data
  slope: Data


class Optimizing(NamedTuple):
  """The memory of an optax transform: its state, one per sample."""
  state: Any
  slope: Data


def gradient_descent(step_size: ArrayLike) -> Solver:
  """z <- z - step_size f(z)."""
  return Solver(Partial(_gradient_init), Partial(_gradient_step, step_size=step_size))


def _gradient_init(z):
  return Point(jax.tree.map(jnp.zeros_like, z))


def _gradient_step(predict, z, memory, t, s, keys, *, step_size):
  slope = _slope(predict, z, t)
  return combine((1, z), (-step_size, slope)), Point(slope)


def nesterov(step_size: ArrayLike, momentum: ArrayLike) -> Solver:
  """z_{k+1} = z_k - step_size f(z_k + momentum (z_k - z_{k-1})): the look-ahead gradient.

  Equilibrium Matching's algorithm 2: the gradient is taken ahead, the step from z itself, so no
  velocity accumulates [Wang & Du 2510.02300].
  """
  return Solver(Partial(_nesterov_init),
                Partial(_nesterov_step, step_size=step_size, momentum=momentum))


def _nesterov_init(z):
  return Moving(previous=z, slope=jax.tree.map(jnp.zeros_like, z))


def _nesterov_step(predict, z, memory, t, s, keys, *, step_size, momentum):
  slope = _slope(predict, combine((1 + momentum, z), (-momentum, memory.previous)), t)
  return combine((1, z), (-step_size, slope)), Moving(previous=z, slope=slope)


def from_optax(transform: Any) -> Solver:
  """z <- z + update(f(z)), for an optax gradient transformation with a state for each sample.

  One that draws noise draws the same for every sample. Raises ValueError for a transformation that
  needs a loss value: a field has none.
  """
  try:
    jax.eval_shape(lambda z: transform.update(z, transform.init(z), z), jnp.zeros(1))
  except TypeError as error:
    # Another error may be of this probe alone: some transforms are made for one tree of parameters.
    if 'missing' in str(error) and 'keyword-only' in str(error):
      raise ValueError(f'from_optax: {error}: a field has no loss value to give; choose a '
                       'transformation of gradients alone, such as optax.sgd(0.01)') from error
  return Solver(Partial(_optax_init, transform=Static(transform)),
                Partial(_optax_step, transform=Static(transform)))


def _optax_init(z, *, transform):
  return Optimizing(jax.vmap(transform.value.init)(z), jax.tree.map(jnp.zeros_like, z))


def _optax_step(predict, z, memory, t, s, keys, *, transform):
  slope = _slope(predict, z, t)
  updates, state = jax.vmap(transform.value.update)(slope, memory.state, z)
  return combine((1, z), (1, updates)), Optimizing(state, slope)


def descend(solver: Solver, field: Predict, z: Data, *, num_steps: int) -> Data:
  """z after num_steps steps of the solver on the field, from z [b, ...]. One compiled scan."""
  solver, z = _start(solver, z)
  return _descend(solver, arrays.pytree(field), z, num_steps=num_steps)


@jax.jit(static_argnames='num_steps')
def _descend(solver, field, z, *, num_steps):
  t = _rest(z)

  def step(carry, _):
    z, memory = carry
    return solver.step(field, z, memory, t, t, None), None

  return jax.lax.scan(step, (z, solver.init(z)), length=num_steps)[0][0]


def descend_until(solver: Solver, field: Predict, z: Data, *, max_steps: int,
                  threshold: ArrayLike) -> tuple[Data, Int[Array, 'b'], Float[Array, 'b']]:
  """(z, steps, norms): each sample descends until |f| < threshold, or for max_steps evaluations.

  |f| is the norm over all coordinates where the solver evaluates the field (for Nesterov, ahead of
  z). The evaluation that finds it small is counted, and z stays where it was before that
  evaluation's move. norms are those last seen: norms >= threshold, or NaN, did not converge. Not
  reverse-differentiable: how long it runs depends on the samples.
  """
  solver, z = _start(solver, z)
  return _descend_until(solver, arrays.pytree(field), z, max_steps, threshold)


@jax.jit
def _descend_until(solver, field, z, max_steps, threshold):
  t = _rest(z)

  def unfinished(carry):
    _, _, steps, _, moving = carry
    return jnp.any(moving) & (jnp.max(steps) < max_steps)

  def step(carry):
    z, memory, steps, norms, moving = carry
    ahead, ahead_memory = solver.step(field, z, memory, t, t, None)
    seen = jnp.sqrt(arrays.square_norm(ahead_memory.slope))
    norms = jnp.where(moving, seen, norms)
    steps = steps + moving
    moving = moving & ~(norms < threshold)
    keep = lambda new, old: jnp.where(arrays.expand(moving, new), new, old)
    return jax.tree.map(keep, ahead, z), jax.tree.map(keep, ahead_memory, memory), steps, norms, moving

  b = arrays.batch_size(z)
  norms = jnp.full(b, jnp.inf, arrays.square_norm(z).dtype)
  start = z, solver.init(z), jnp.zeros(b, jnp.int32), norms, jnp.ones(b, bool)
  z, _, steps, norms, _ = jax.lax.while_loop(unfinished, step, start)
  return z, steps, norms


def _rest(z):
  return jnp.zeros(arrays.batch_size(z))


def _start(solver, z):
  solver, z = Solver(*map(arrays.pytree, solver)), jax.tree.map(jnp.asarray, z)
  if not hasattr(jax.eval_shape(solver.init, z), 'slope'):
    raise ValueError(f'{arrays.name_of(solver.step)} keeps no slope, so it does not descend: choose '
                     'gradient_descent, nesterov or from_optax, or sample along times')
  return solver, z


def _slope(predict, z, t):
  slope = predict(z, t)
  arrays.check_alike('predict returned', slope, 'z', z)
  # The memory must not change its type where the network computes in less than z has.
  return jax.tree.map(lambda a, b: a.astype(b.dtype), slope, z)
