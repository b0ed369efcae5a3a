"""Samples that need no model: the rows to print next to a model's numbers.

What is no better than a clipped Gaussian per class has learned nothing; what beats two halves of
the data may be remembering it. All are pure functions of (data, labels, seed).
"""

from jaxtyping import Array, Float, Integer
import numpy as np

Records = Float[Array | np.ndarray, 'n ...']


def halves(x: Records, seed: int) -> tuple[Float[np.ndarray, '_ ...'], Float[np.ndarray, '_ ...']]:
  """Two disjoint halves of the records x [n, ...], [n // 2, ...] and the rest, in random order."""
  x = np.asarray(x)
  order = np.random.default_rng(seed).permutation(len(x))
  return x[order[:len(x) // 2]], x[order[len(x) // 2:]]


def bootstrap(x: Records, seed: int) -> Float[np.ndarray, 'n ...']:
  """n records drawn from x [n, ...] with replacement."""
  x = np.asarray(x)
  return x[np.random.default_rng(seed).integers(0, len(x), len(x))]


def gaussian(x: Records, seed: int, *, clip: bool = True) -> Float[np.ndarray, 'n ...']:
  """n draws of N(m, C), with m and C the mean and covariance of x [n, ...]; dtype of x.

  `clip` limits them to [-1, 1], as a picture would be.
  """
  return _draw(np.asarray(x), np.random.default_rng(seed), clip)


def gaussian_per_class(x: Records, label: Integer[Array | np.ndarray, 'n'], seed: int, *,
                       clip: bool = True) -> Float[np.ndarray, 'n ...']:
  """Draw i of N(m_y, C_y), y = label[i], with the moments of that class in x [n, ...].

  So the classes keep their counts and the labels their order. A class of one record repeats it.
  """
  x, label = np.asarray(x), np.asarray(label)
  rng = np.random.default_rng(seed)
  out = np.empty_like(x)
  for y in np.unique(label):
    out[label == y] = _draw(x[label == y], rng, clip)
  return out


def _draw(x, rng, clip):
  n = len(x)
  flat = x.reshape(n, -1).astype(np.float64)
  mean = flat.mean(0)
  # R^T R = (n - 1) C, of rank <= n: no d x d matrix is formed where pictures are large.
  root = np.linalg.qr(flat - mean, mode='r')
  z = mean + rng.standard_normal((n, len(root))) @ root / np.sqrt(max(n - 1, 1))
  return (np.clip(z, -1, 1) if clip else z).reshape(x.shape).astype(x.dtype)
