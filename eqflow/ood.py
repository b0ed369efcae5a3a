"""How far out an input lies: scores of z [b, ...] by a field at rest, or by its energy.

A score is (field, z) -> [b], higher for what is less like the data, and compares inputs of one model
alone. The field is blind to time, and is evaluated at t = 0; an energy with its condition bound is
(z, t) -> [b]. What is bound to a score is a number: Partial(descent_drop, step_size=0.006,
num_steps=25).
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from eqflow import arrays, fields
from eqflow.arrays import Data
from eqflow.fields import Network, Predict

Score = Callable[[Predict, Data], Float[Array, 'b']]


def gradient_norm(field: Predict, z: Data) -> Float[Array, 'b']:
  """|f(z)| over all coordinates: how steep the energy is where an input lies, small at data."""
  return _gradient_norm(arrays.pytree(field), _floating(z))


@jax.jit
def _gradient_norm(field, z):
  return jnp.sqrt(arrays.square_norm(fields.at_rest(field, z)))


def descent_drop(field: Predict, z: Data, *, step_size: ArrayLike,
                 num_steps: Int[ArrayLike, '']) -> Float[Array, 'b']:
  """E(z) - E(z_n) = the line integral of f along z_{k+1} = z_k - step_size f(z_k), n = num_steps.

  By the trapezoidal rule, sum_k step_size <f_k, f_k + f_{k+1}>/2: exact where f is linear along a
  step, and never above step_size sum_k |f_k|^2, which is Euler's rule, where f is the gradient of a
  convex energy. A field that is no gradient has no energy, but has this number. num_steps + 1
  evaluations; reverse derivatives there are none. Raises ValueError unless both numbers are positive.
  """
  for name, number in (('step_size', step_size), ('num_steps', num_steps)):
    if not arrays.is_traced(number) and not number > 0:
      raise ValueError(f'descent_drop: {name}={number}: give a positive number')
  return _descent_drop(arrays.pytree(field), _floating(z), step_size, num_steps)


@jax.jit
def _descent_drop(field, z, step_size, num_steps):
  def step(_, carry):
    z, slope, drop = carry
    z = arrays.combine((1, z), (-step_size, slope))
    ahead = fields.at_rest(field, z)
    mean = arrays.combine((0.5, slope), (0.5, ahead))
    return z, ahead, drop + (step_size * arrays.inner(slope, mean)).astype(drop.dtype)

  slope = fields.at_rest(field, z)
  none = jnp.zeros_like(arrays.square_norm(slope))
  return jax.lax.fori_loop(0, num_steps, step, (z, slope, none))[2]


def energy_at(energy: Callable, z: Data) -> Float[Array, 'b']:
  """E(z), of an explicit energy with its condition bound; its zero is not that of other classes.

  Raises ValueError where the energy is not one number for each example.
  """
  return _energy_at(arrays.pytree(energy), _floating(z))


@jax.jit
def _energy_at(energy, z):
  value = energy(z, jnp.zeros(arrays.batch_size(z)))
  arrays.check_numbers(f'energy {arrays.name_of(energy)!r}', value, z)
  return value


def over_classes(score: Score, network: Network, z: Data, *,
                 num_classes: int) -> Float[Array, '_ b']:
  """[y, b]: score(network of class y, z) for every class y, in one compiled loop over the classes.

  Where the class of an input is unknown its score is the least, `.min(0)`, and `.argmin(0)` the class
  that it fits best; `.mean(0)` asks that it fit all of them. Without classes (0) there is one row, of
  the network given None. network may be an energy, (z, t, condition) -> [b], of which `energy_at` is
  the score. An example's scores do not depend on the others in the batch. Raises ValueError for fewer
  classes than none.
  """
  if num_classes < 0:
    raise ValueError(f'num_classes={num_classes}: give the number of classes, 0 for a model without')
  return _over_classes(arrays.pytree(score), arrays.pytree(network), _floating(z),
                       num_classes=num_classes)


@jax.jit(static_argnames='num_classes')
def _over_classes(score, network, z, *, num_classes):
  if not num_classes:
    return score(fields.bind(network, None), z)[None]
  b = arrays.batch_size(z)
  of_class = lambda y: score(fields.bind(network, jnp.full(b, y)), z)
  return jax.lax.map(of_class, jnp.arange(num_classes, dtype=jnp.int32))


def _floating(z: Any):
  for a in jax.tree.leaves(z):
    if not jnp.issubdtype(a.dtype, jnp.floating):
      raise TypeError(f'z is {a.dtype}: scores are those of floating inputs, such as x / 127.5 - 1')
  return jax.tree.map(jnp.asarray, z)
