"""Out-of-distribution scores of inputs z [b, ...], by a field that ignores time or by its energy.

An OOD score is (field, z) -> [b], higher for inputs that are less like the data. It compares inputs of
one model only. The field is evaluated at t = 0; an energy with its condition bound is (z, t) -> [b].
Bind the numbers of a score with a Partial: Partial(descent_drop, step_size=0.006, num_steps=25).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax import numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from eqflow import arrays, fields
from eqflow.arrays import Data
from eqflow.fields import Network, Predict

Score = Callable[[Predict, Data], Float[Array, 'b']]


def gradient_norm(field: Predict, z: Data) -> Float[Array, 'b']:
  """|f(z)| over all elements: the slope of the energy at the input, small at data."""
  arrays.check_functions(field=field)
  return _gradient_norm(arrays.pytree(field), _floating(z))


@jax.jit
def _gradient_norm(field, z):
  return jnp.sqrt(arrays.square_norm(fields.at_rest(field, z)))


def descent_drop(field: Predict, z: Data, *, step_size: ArrayLike,
                 num_steps: Int[ArrayLike, '']) -> Float[Array, 'b']:
  """E(z) - E(z_n) = the line integral of f along z_{k+1} = z_k - step_size f(z_k), n = num_steps.

  By the trapezoidal rule, sum_k step_size <f_k, f_k + f_{k+1}>/2: exact where f is linear along a
  step, and never above step_size sum_k |f_k|^2, which is Euler's rule, where f is the gradient of a
  convex energy. A field that is not a gradient has no energy, but this number is still defined. Costs
  num_steps + 1 evaluations; differentiable in forward mode only. Raises ValueError unless both numbers
  are positive.
  """
  arrays.check_functions(field=field)
  arrays.check_scalars(step_size=step_size, num_steps=num_steps)
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
  drop = jax.lax.fori_loop(0, num_steps, step, (z, slope, none))[2]
  return arrays.forward_only('descent_drop', drop)


def energy_at(energy: Callable, z: Data) -> Float[Array, 'b']:
  """E(z), of an explicit energy with its condition bound; its zero differs between classes.

  Raises ValueError where the energy is not one number for each example.
  """
  arrays.check_functions(energy=energy)
  return _energy_at(arrays.pytree(energy), _floating(z))


@jax.jit
def _energy_at(energy, z):
  value = energy(z, jnp.zeros(arrays.batch_size(z)))
  arrays.check_numbers(f'energy {arrays.name_of(energy)!r}', value, z)
  return value


def over_classes(score: Score, network: Network, z: Data, *,
                 num_classes: int) -> Float[Array, '_ b']:
  """[y, b]: score(network of class y, z) for every class y, in one compiled loop over the classes.

  For an input of unknown class, `.min(0)` is the score of the class that fits best, `.argmin(0)` that
  class, and `.mean(0)` the average over classes. With num_classes = 0 there is one row, with condition
  None. network may be an energy, (z, t, condition) -> [b], with `energy_at` as the score. Scores of an
  example do not depend on the batch. Raises ValueError for a negative num_classes.
  """
  arrays.check_functions(score=score, network=network)
  arrays.check_scalars(num_classes=num_classes)
  if num_classes < 0:
    raise ValueError(f'num_classes={num_classes}: give 0 for a model without classes, or more')
  return _over_classes(arrays.pytree(score), arrays.pytree(network), _floating(z),
                       num_classes=num_classes)


@jax.jit(static_argnames='num_classes')
def _over_classes(score, network, z, *, num_classes):
  if not num_classes:
    return score(fields.bind(network, None), z)[None]
  b = arrays.batch_size(z)
  of_class = lambda y: score(fields.bind(network, jnp.full(b, y)), z)
  return jax.lax.map(of_class, jnp.arange(num_classes, dtype=jnp.int32))


def _floating(z: Data):
  arrays.check_floating('z', z)
  return jax.tree.map(jnp.asarray, z)
