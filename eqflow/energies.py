"""Energies, (z, t, condition) -> [b], and the fields that are their gradients.

| energy | of a network f | where data are |
|---|---|---|
| `dot` | z . f(z) | wherever training puts its minima |
| `squared_norm` | f(z) . f(z)/2 | where f is smallest |
| `negative_squared_norm` | -f(z) . f(z)/2 | where f is largest |

`energy_gradient` makes a Network of any such function; what is trained is then grad_z E, through the
gradient of a gradient, and what is descended is the same grad_z E, never f. Every vector
E[a x + b eps | z] is a gradient in z at a fixed t (z and the score are, and the data's and noise's
means are mixtures of them), so an energy may be of any output, told the time or not.

Guidance takes no function of its own: `fields.guided` and `fields.composed` of an energy, with
numbers as scales, are energies bound to their condition, whose gradients are those functions of
`energy_gradient`. A scale per channel guides a field, which then need not be a gradient.
"""

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
  """E = z . f(z), over all coordinates of all leaves; its gradient is f + J^T z, J = df/dz.

  A network that starts at zero learns: the gradient is linear in its last layer.
  """
  return Partial(_dot, network=arrays.pytree(network))


def _dot(z, t, condition, *, network):
  y = network(z, t, condition)
  arrays.check_alike('network returned', y, 'z', z)
  return arrays.inner(z, y)


def squared_norm(network: Network) -> Energy:
  """E = |f(z)|^2/2: its gradient, J^T f, is descended to where f is smallest.

  What the code of Equilibrium Matching trains: it writes -|f|^2/2 and ascends. A network that starts
  at zero never learns: both J and f vanish, and with them the gradient in every parameter.
  """
  return Partial(_squared_norm, network=arrays.pytree(network))


def _squared_norm(z, t, condition, *, network):
  return arrays.square_norm(network(z, t, condition)) / 2


def negative_squared_norm(network: Network) -> Energy:
  """E = -|f(z)|^2/2, as Equilibrium Matching prints it: descended to where f is largest.

  A network that starts at zero never learns, as with `squared_norm`.
  """
  return Partial(_negative_squared_norm, network=arrays.pytree(network))


def _negative_squared_norm(z, t, condition, *, network):
  return -arrays.square_norm(network(z, t, condition)) / 2


def energy_gradient(energy: Energy) -> Network:
  """(z, t, condition) -> grad_z E, shaped and typed as z, of any function E with a number [b] for each.

  Differentiable again, so that it is trained as any network is. Raises ValueError where the energy
  is not one number for each example.
  """
  return Partial(_energy_gradient, energy=arrays.pytree(energy))


def _energy_gradient(z, t, condition, *, energy):
  value, pullback = jax.vjp(lambda z: energy(z, t, condition), z)
  arrays.check_numbers(f'energy {arrays.name_of(energy)!r}', value, z)
  # Examples do not couple in an energy, so the gradient of the sum is that of each.
  return pullback(jnp.ones_like(value))[0]
