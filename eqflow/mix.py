"""The plane that data and noise span.

For a fixed t, the noisy state and everything a network may be asked for (x, eps, v, u, the score,
EDM's F, the field of Equilibrium Matching) are vectors a x + b eps. Knowing two of them, the state
z and the network's output y, gives every other one by Cramer's rule.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from eqflow import arrays
from eqflow.arrays import Coef, Data


class Mix(NamedTuple):
  """The vector x*data + eps*noise; coordinates are scalars or [b]."""
  x: Any
  eps: Any

  # Tuples would concatenate, repeat and broadcast where a reader expects vectors.
  __array_ufunc__ = None

  def __add__(self, other):
    raise TypeError('a Mix is not added: write Mix(p.x + q.x, p.eps + q.eps)')

  def __mul__(self, other):
    raise TypeError('a Mix is not multiplied: write Mix(c * p.x, c * p.eps)')

  __radd__, __rmul__ = __add__, __mul__


def det(p: Mix, q: Mix) -> Coef:
  """det(p, q) = p_x q_eps - p_eps q_x, the area that p and q span; 0 where they are parallel."""
  return p.x * q.eps - p.eps * q.x


def mix(to: Mix, x: Data, eps: Data) -> Data:
  """to_x x + to_eps eps: the vector `to`, given data and noise [b, ...]; dtype of x.

  Raises ValueError where the shapes of x and eps differ, TypeError where x is not floating.
  """
  arrays.check_alike('eps', eps, 'x', x)
  return arrays.combine((to.x, x), (to.eps, eps))


def remix(to: Mix, *, state: Mix, out: Mix, z: Data, y: Data) -> Data:
  """(det(to, out)/D) z + (det(state, to)/D) y, D = det(state, out): the vector `to`, given z and y.

  z [b, ...] is the vector `state`, y [b, ...] the vector `out`; the result has the dtype of z.
  Nothing is clamped: where state and out are parallel (D = 0), the output is blind and the result
  not finite; `blind_spots.check_grid` rejects such times beforehand. Raises as `mix` does.
  """
  arrays.check_alike('predict returned', y, 'z', z)
  area = det(state, out)
  # Divided before multiplied: an output converted to itself is then exact.
  return arrays.combine((det(to, out) / area, z), (det(state, to) / area, y))


def gain(to: Mix, *, state: Mix, out: Mix) -> Coef:
  """det(state, to)/det(state, out): how much an error in `out` is stretched in `to`.

  gain**2 is every loss reweighting of the field; where it is infinite, `out` is blind.
  """
  return det(state, to) / det(state, out)
