"""Samples without a model: their distances are printed next to a model's.

A model that is not better than a clipped Gaussian per class has learned little; a model that is better
than two halves of the data may have memorized it. All are pure functions of (data, labels, seed).
"""

from __future__ import annotations

from jaxtyping import Array, Float, Integer
import numpy as np

Records = Float[Array | np.ndarray, 'n ...']


def halves(x: Records, seed: int) -> tuple[Float[np.ndarray, '_ ...'], Float[np.ndarray, '_ ...']]:
  """Two disjoint random halves [n // 2, ...] and [n - n // 2, ...] of the records x [n, ...]."""
  x = np.asarray(x)
  order = np.random.default_rng(seed).permutation(len(x))
  return x[order[:len(x) // 2]], x[order[len(x) // 2:]]


def bootstrap(x: Records, seed: int) -> Float[np.ndarray, 'n ...']:
  """n records sampled from x [n, ...] with replacement."""
  x = np.asarray(x)
  return x[np.random.default_rng(seed).integers(0, len(x), len(x))]


def gaussian(x: Records, seed: int, *, clip: bool = True) -> Float[np.ndarray, 'n ...']:
  """n samples of N(m, C), with m and C the mean and covariance of x [n, ...]; dtype of x.

  `clip` clips them to [-1, 1], the range of images.
  """
  return _draw(np.asarray(x), np.random.default_rng(seed), clip)


def gaussian_per_class(x: Records, label: Integer[Array | np.ndarray, 'n'], seed: int, *,
                       clip: bool = True) -> Float[np.ndarray, 'n ...']:
  """Sample i is from N(m_y, C_y), y = label[i], with the mean and covariance of class y in x [n, ...].

  Sample i has class label[i]. A class with one record repeats this record.
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
  # R^T R = (n - 1) C with R [min(n, d), d]: no d x d matrix is needed for n < d.
  root = np.linalg.qr(flat - mean, mode='r')
  z = mean + rng.standard_normal((n, len(root))) @ root / np.sqrt(max(n - 1, 1))
  return (np.clip(z, -1, 1) if clip else z).reshape(x.shape).astype(x.dtype)
