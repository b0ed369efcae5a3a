"""Methods of descent. A step size is a number times schedule(k), k the iterations made."""

from __future__ import annotations

import re
from typing import Any

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from jaxtyping import ArrayLike
import numpy as np

from eqflow import arrays
from eqflow.arrays import Static, combine
from eqflow.descent.base import Descent, Schedule, State, at_start, constant
from eqflow.samplers import Traits


def _check(schedule, **numbers):
  arrays.check_functions(schedule=schedule)
  arrays.check_scalars(**numbers)


def gradient_descent(step_size: ArrayLike, *, schedule: Schedule = constant) -> Descent:
  """z <- z - step_size f(z)."""
  _check(schedule, step_size=step_size)
  step = Partial(_gradient_step, step_size=step_size, schedule=arrays.pytree(schedule))
  return Descent(Partial(at_start), step, Traits('gradient_descent'))


def _gradient_step(field, z, state, keys, *, step_size, schedule):
  slope = field(z)
  return combine((1, z), (-step_size * schedule(state.count), slope)), State(state.count + 1, slope)


def nesterov(step_size: ArrayLike, momentum: ArrayLike, *, schedule: Schedule = constant) -> Descent:
  """z_{k+1} = z_k - step_size f(z_k + momentum (z_k - z_{k-1})): the look-ahead gradient.

  Equilibrium Matching's algorithm 2: the gradient is evaluated ahead and the step starts from z itself,
  so no velocity accumulates [Wang & Du 2510.02300].
  """
  _check(schedule, step_size=step_size, momentum=momentum)
  step = Partial(_nesterov_step, step_size=step_size, schedule=arrays.pytree(schedule),
                 momentum=momentum)
  return Descent(Partial(_at_rest), step, Traits('nesterov'))


def _at_rest(z):
  return at_start(z)._replace(inner=z)


def _nesterov_step(field, z, state, keys, *, step_size, schedule, momentum):
  slope = field(combine((1 + momentum, z), (-momentum, state.inner)))
  ahead = combine((1, z), (-step_size * schedule(state.count), slope))
  return ahead, State(state.count + 1, slope, inner=z)


def heun(step_size: ArrayLike, *, schedule: Schedule = constant) -> Descent:
  """z <- z - step_size (f(z) + f(z - step_size f(z)))/2: Heun's rule on the gradient flow z' = -f.

  Two evaluations an iteration. Gradient descent is Euler's rule on this flow. Other rules are in
  `samplers`: `sample(samplers.heun(processes.linear, outputs.u), field, z, times)` with times that fall
  from the length of the flow, at most 1, to 0.
  """
  _check(schedule, step_size=step_size)
  step = Partial(_heun_step, step_size=step_size, schedule=arrays.pytree(schedule))
  return Descent(Partial(at_start), step, Traits('heun', stages=2))


def _heun_step(field, z, state, keys, *, step_size, schedule):
  eta, slope = step_size * schedule(state.count), field(z)
  ahead = field(combine((1, z), (-eta, slope)))
  return combine((1, z), (-eta / 2, slope), (-eta / 2, ahead)), State(state.count + 1, slope)


def langevin(step_size: ArrayLike, temperature: ArrayLike, *, schedule: Schedule = constant) -> Descent:
  """z <- z - step_size f(z) + sqrt(2 step_size temperature) noise: samples exp(-E/temperature).

  f is the gradient of the energy E. Unadjusted, so keep steps small. Temperature 0 is gradient descent.
  Stochastic. Raises ValueError for a step size that is not above 0 or a temperature below 0.
  """
  _check(schedule, step_size=step_size, temperature=temperature)
  for name, number, right, limit in (('step_size', step_size, np.greater, 'above 0'),
                                     ('temperature', temperature, np.greater_equal, '0 or more')):
    if not arrays.is_traced(number) and not np.all(right(number, 0)):
      raise ValueError(f'{name}={number} of langevin: give a number, {limit}')
  step = Partial(_langevin_step, step_size=step_size, schedule=arrays.pytree(schedule),
                 temperature=temperature)
  return Descent(Partial(at_start), step, Traits('langevin', stochastic=True))


def _langevin_step(field, z, state, keys, *, step_size, schedule, temperature):
  eta, slope = step_size * schedule(state.count), field(z)
  spread = jnp.sqrt(2 * eta * temperature)
  moved = combine((1, z), (-eta, slope), (spread, arrays.noise_like(keys, z)))
  return moved, State(state.count + 1, slope)


def from_optax(transform: Any) -> Descent:
  """z <- z + update(f(z)), for an optax gradient transformation with a state for each sample.

  A transformation that adds noise adds the same noise to every sample. Raises ValueError for one that
  needs a loss value: a field has none.
  """
  if not hasattr(transform, 'update'):
    raise TypeError(f'transform is {transform!r:.60}: give an optax transformation, as optax.sgd(0.01)')
  try:
    jax.eval_shape(lambda z: transform.update(z, transform.init(z), z), jnp.zeros(1))
  except Exception as error:
    # Other errors may concern this probe alone: some transforms are made for one tree of parameters.
    if re.search('missing .* keyword-only|must be provided', str(error)):
      raise ValueError(f'from_optax: {error}, but a field has no loss value: choose a transformation '
                       'of gradients alone, such as optax.sgd(0.01)') from error
  return Descent(Partial(_optax_init, transform=Static(transform)),
                 Partial(_optax_step, transform=Static(transform)), Traits('from_optax'))


def _optax_init(z, *, transform):
  return at_start(z)._replace(inner=jax.vmap(transform.value.init)(z))


def _optax_step(field, z, state, keys, *, transform):
  slope = field(z)
  updates, inner = jax.vmap(transform.value.update)(slope, state.inner, z)
  return combine((1, z), (1, updates)), State(state.count + 1, slope, inner)
