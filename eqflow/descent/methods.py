"""Sampling by optimization: descend a field, such as that of Equilibrium Matching, to its zeros.

The solvers are those of `solver`, their steps blind to time: predict(z, 0) is the field, and where
others are told the next time they are told k [b], how many steps each sample has made. Every leaf of
their memory has a leading [b], so samples never couple, and `memory.slope` is the field where it was
last evaluated. A step size is a number times schedule(k), which is 1 unless another is given.
"""

from collections.abc import Callable
import re
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Int, Num
import numpy as np

from eqflow import arrays
from eqflow.arrays import Data, Static, combine
from eqflow.samplers import Solver

# k [b] -> the factor of the step size [b].
Schedule = Callable[[Int[Array, 'b']], ArrayLike]


class Point(NamedTuple):
  """The memory of a method that remembers nothing but the slope it saw."""
  slope: Data


class Moving(NamedTuple):
  """The memory of Nesterov's method: where z was a step ago."""
  previous: Data
  slope: Data


class Optimizing(NamedTuple):
  """The memory of an optax transform: its state, one per sample."""
  state: Any
  slope: Data


@Partial
def constant(k: Num[ArrayLike, '*b']) -> ArrayLike:
  """1: the step size as it is given."""
  return 1.0


constant.func.told_nothing = True


def cosine(k: Num[ArrayLike, '*b'], *, num_steps: ArrayLike) -> Float[Array, '*b']:
  """(1 + cos(pi k/num_steps))/2, from 1 at the first step to 0 after the last."""
  return (1 + jnp.cos(jnp.pi * jnp.minimum(k / num_steps, 1))) / 2


def harmonic(k: Num[ArrayLike, '*b'], *, half: ArrayLike) -> Float[Array, '*b']:
  """1/(1 + k/half): steps whose sum is infinite and whose squares' sum is not."""
  return 1 / (1 + k / half)


def gradient_descent(step_size: ArrayLike, *, schedule: Schedule = constant) -> Solver:
  """z <- z - step_size f(z)."""
  return _solver(_gradient_step, step_size, schedule)


def _solver(step, step_size, schedule, init=None, **bound):
  return Solver(Partial(init or _point), Partial(
      step, step_size=step_size, schedule=arrays.pytree(schedule), **bound))


def _point(z):
  return Point(jax.tree.map(jnp.zeros_like, z))


def _gradient_step(predict, z, memory, t, k, keys, *, step_size, schedule):
  slope = _slope(predict, z, t)
  return combine((1, z), (-step_size * schedule(k), slope)), Point(slope)


def nesterov(step_size: ArrayLike, momentum: ArrayLike, *, schedule: Schedule = constant) -> Solver:
  """z_{k+1} = z_k - step_size f(z_k + momentum (z_k - z_{k-1})): the look-ahead gradient.

  Equilibrium Matching's algorithm 2: the gradient is taken ahead, the step from z itself, so no
  velocity accumulates [Wang & Du 2510.02300].
  """
  return _solver(_nesterov_step, step_size, schedule, _moving, momentum=momentum)


def _moving(z):
  return Moving(previous=z, slope=jax.tree.map(jnp.zeros_like, z))


def _nesterov_step(predict, z, memory, t, k, keys, *, step_size, schedule, momentum):
  slope = _slope(predict, combine((1 + momentum, z), (-momentum, memory.previous)), t)
  return combine((1, z), (-step_size * schedule(k), slope)), Moving(previous=z, slope=slope)


def heun(step_size: ArrayLike, *, schedule: Schedule = constant) -> Solver:
  """z <- z - step_size (f(z) + f(z - step_size f(z)))/2: Heun's rule on the gradient flow z' = -f.

  Two evaluations a step. As Euler's rule it is gradient descent; other rules are those of
  `samplers`, as `sample(samplers.heun(processes.linear, outputs.u), field, z, times)` with times that
  fall from the length of the flow, at most 1, to 0.
  """
  return _solver(_heun_step, step_size, schedule)


def _heun_step(predict, z, memory, t, k, keys, *, step_size, schedule):
  eta = step_size * schedule(k)
  slope = _slope(predict, z, t)
  ahead = _slope(predict, combine((1, z), (-eta, slope)), t)
  return combine((1, z), (-eta / 2, slope), (-eta / 2, ahead)), Point(slope)


_heun_step.evaluations = 2


def langevin(step_size: ArrayLike, temperature: ArrayLike, *,
             schedule: Schedule = constant) -> Solver:
  """z <- z - step_size f(z) + sqrt(2 step_size temperature) noise: draws from exp(-E/temperature).

  E is the energy whose gradient f is; unadjusted, so for small steps. Temperature 0 is gradient
  descent. Draws from keys, of which every sample has its own.
  """
  for name, number, right in (('step_size', step_size, np.greater),
                              ('temperature', temperature, np.greater_equal)):
    if not arrays.is_traced(number) and not np.all(right(number, 0)):
      raise ValueError(f'langevin: {name}={number}: give a step size above 0, and a temperature of 0, '
                       'for descent, or more')
  return _solver(_langevin_step, step_size, schedule, temperature=temperature)


def _langevin_step(predict, z, memory, t, k, keys, *, step_size, schedule, temperature):
  slope, eta = _slope(predict, z, t), step_size * schedule(k)
  spread = jnp.sqrt(2 * eta * temperature)
  return combine((1, z), (-eta, slope), (spread, arrays.noise_like(keys, z))), Point(slope)


_langevin_step.draws = True


def from_optax(transform: Any) -> Solver:
  """z <- z + update(f(z)), for an optax gradient transformation with a state for each sample.

  One that draws noise draws the same for every sample. Raises ValueError for a transformation that
  needs a loss value: a field has none.
  """
  try:
    jax.eval_shape(lambda z: transform.update(z, transform.init(z), z), jnp.zeros(1))
  except Exception as error:
    # Another error may be of this probe alone: some transforms are made for one tree of parameters.
    if re.search('missing .* keyword-only|must be provided', str(error)):
      raise ValueError(f'from_optax: {error}: a field has no loss value to give; choose a '
                       'transformation of gradients alone, such as optax.sgd(0.01)') from error
  return Solver(Partial(_optax_init, transform=Static(transform)),
                Partial(_optax_step, transform=Static(transform)))


def _optax_init(z, *, transform):
  return Optimizing(jax.vmap(transform.value.init)(z), jax.tree.map(jnp.zeros_like, z))


def _optax_step(predict, z, memory, t, k, keys, *, transform):
  slope = _slope(predict, z, t)
  updates, state = jax.vmap(transform.value.update)(slope, memory.state, z)
  return combine((1, z), (1, updates)), Optimizing(state, slope)


def _slope(predict, z, t):
  slope = predict(z, t)
  arrays.check_alike('predict returned', slope, 'z', z)
  # The memory must not change its type where the network computes in less than z has.
  return jax.tree.map(lambda a, b: a.astype(b.dtype), slope, z)
