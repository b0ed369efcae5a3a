"""Energies, (z, t, condition) -> [b], and the fields that are their gradients.

| energy | of a network f | data are |
|---|---|---|
| `dot` | z . f(z) | where training puts its minima |
| `squared_norm` | f(z) . f(z)/2 | where f is smallest |
| `negative_squared_norm` | -f(z) . f(z)/2 | where f is largest |

`energy_gradient` turns such a function into a Network. Training fits grad_z E, through second
derivatives, and a descent follows the same grad_z E, never f. Every vector E[a x + b eps | z] is a
gradient in z at a fixed t: z and the score are, and E[x | z] and E[eps | z] are their linear
combinations. So an energy can represent any output, with or without the time as an input.

Energies need no guidance functions of their own: `guidance.guided` and `guidance.composed` of an
energy, with numbers or [b] as scales, are energies with their condition bound, and their gradients are
the guided and composed `energy_gradient`. With a scale per channel the field need not be a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from eqflow import arrays
from eqflow.arrays import Data
from eqflow.fields import Network

Energy = Callable[[Data, Float[Array, 'b'], Any], Float[Array, 'b']]


def dot(network: Network) -> Energy:
  """E = z . f(z), over all elements of all leaves; its gradient is f + J^T z, J = df/dz.

  A network initialized at zero can learn: the gradient is linear in its last layer.
  """
  arrays.check_functions(network=network)
  return arrays.pytree(Partial(_dot, network=network))


def _dot(z, t, condition, *, network):
  y = network(z, t, condition)
  arrays.check_alike('network returned', y, 'z', z)
  return arrays.inner(z, y)


def squared_norm(network: Network) -> Energy:
  """E = |f(z)|^2/2: descending its gradient J^T f leads to where f is smallest.

  The code of Equilibrium Matching trains this: it writes -|f|^2/2 and ascends. A network initialized at
  zero never learns: J and f are 0, and so is the gradient in every parameter.
  """
  arrays.check_functions(network=network)
  return arrays.pytree(Partial(_squared_norm, network=network))


def _squared_norm(z, t, condition, *, network):
  return arrays.square_norm(network(z, t, condition)) / 2


def negative_squared_norm(network: Network) -> Energy:
  """E = -|f(z)|^2/2, as in the Equilibrium Matching paper: descent leads to where f is largest.

  A network initialized at zero never learns, as with `squared_norm`.
  """
  arrays.check_functions(network=network)
  return arrays.pytree(Partial(_negative_squared_norm, network=network))


def _negative_squared_norm(z, t, condition, *, network):
  return -arrays.square_norm(network(z, t, condition)) / 2


def energy_gradient(energy: Energy) -> Network:
  """(z, t, condition) -> grad_z E, with the shapes and dtypes of z, for any E that returns [b].

  Differentiable again, so it can be trained as any network. Raises ValueError where the energy is not
  one number for each example.
  """
  arrays.check_functions(energy=energy)
  return arrays.pytree(Partial(_energy_gradient, energy=energy))


def _energy_gradient(z, t, condition, *, energy):
  value, pullback = jax.vjp(lambda z: energy(z, t, condition), z)
  arrays.check_numbers(f'energy {arrays.name_of(energy)!r}', value, z)
  # Examples do not interact in an energy, so the gradient of the sum has the gradient of each.
  return pullback(jnp.ones_like(value))[0]
