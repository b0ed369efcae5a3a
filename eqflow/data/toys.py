"""Two-dimensional data with known densities: E[x] = 0, E|x|^2 / 2 = 1, to two digits.

Point i has its own random numbers, so that the first n points do not depend on the number of points.
"""

from jaxtyping import Float32, Int32
import numpy as np

Labelled = tuple[Float32[np.ndarray, 'n 2'], Int32[np.ndarray, 'n']]


def moons(n: int, seed: int = 0) -> Labelled:
  """x = sqrt(2) (m + 0.05 g), g ~ N(0, I): two interleaved half circles, one per class.

  With a ~ U(0, pi) and equally likely classes: m = (cos a - 1/2, sin a - 1/4) for label 0 and
  (1/2 - cos a, 1/4 - sin a) for label 1.
  """
  u, g = _draws(n, seed)
  label = (u[:, 0] < 0.5).astype(np.int32)
  angle = np.pi * u[:, 1]
  upper = np.stack([np.cos(angle) - 0.5, np.sin(angle) - 0.25], axis=1)
  return _labelled(np.sqrt(2) * (np.where(label[:, None], -upper, upper) + 0.05 * g), label)


def checkerboard(n: int, seed: int = 0) -> Labelled:
  """p(x) = 1/6 on the 8 dark squares of a 4 x 4 board over [-sqrt(3), sqrt(3)]^2, 0 elsewhere.

  Square (i, j) is dark where i + j is even; labels 0 to 7 number the dark squares, by i first.
  """
  u, _ = _draws(n, seed)
  square, across = np.divmod(8 * u[:, 0], 1)
  i, pair = np.divmod(square, 2)
  corner = np.stack([i, 2 * pair + i % 2], axis=1)
  cells = corner + np.stack([across, u[:, 1]], axis=1)
  return _labelled(np.sqrt(3) / 2 * (cells - 2), square)


def rings(n: int, seed: int = 0) -> Labelled:
  """x = r (cos a, sin a) + 0.05 g, g ~ N(0, I): circles of r = sqrt(3/7) (1, 2, 3), one per class.

  a ~ U(0, 2 pi), the three circles equally likely (the inner ones are denser).
  """
  u, g = _draws(n, seed)
  label = np.floor(3 * u[:, 0])
  radius = np.sqrt(3 / 7) * (label + 1)
  return _labelled(radius[:, None] * _unit(2 * np.pi * u[:, 1]) + 0.05 * g, label)


def mixture(n: int, seed: int = 0) -> Labelled:
  """p(x) = 1/8 sum_j N(x; m_j, 0.1^2 I), m_j = sqrt(1.98) (cos(j pi/4), sin(j pi/4)), label j."""
  u, g = _draws(n, seed)
  label = np.floor(8 * u[:, 0])
  return _labelled(np.sqrt(1.98) * _unit(label * np.pi / 4) + 0.1 * g, label)


def _draws(n, seed):
  uniform, normal = np.random.SeedSequence(seed).spawn(2)
  return (np.random.default_rng(uniform).random((n, 2)),
          np.random.default_rng(normal).standard_normal((n, 2)))


def _unit(angle):
  return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _labelled(x, label):
  return x.astype(np.float32), label.astype(np.int32)
