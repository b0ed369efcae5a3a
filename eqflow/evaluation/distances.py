"""Distances between two sets of features [n, d]: numpy, float64, in blocks of bounded memory."""

from __future__ import annotations

import math
from typing import NamedTuple

from jaxtyping import Array, Float, Int, Integer, Shaped
import numpy as np

Features = Shaped[Array | np.ndarray, 'n d']
OtherFeatures = Shaped[Array | np.ndarray, '_ _']
_NUMBERS = 2 ** 22  # in one block: 32 MB in float64


class Moments(NamedTuple):
  """The mean m [d] of a set of features, and a root R [r, d] of its covariance, C = R^T R."""
  mean: Float[np.ndarray, '_']
  root: Float[np.ndarray, '_ _']


class Manifold(NamedTuple):
  """The union of balls around points [n, d], each with its squared radius [n]."""
  points: Float[np.ndarray, '_ _']
  radii: Float[np.ndarray, '_']


def moments(features: Features) -> Moments:
  """m = mean_i f_i and R with R^T R = sum_i (f_i - m)(f_i - m)^T / (n - 1), of [n, d], in float64.

  R has min(n, d) rows: the rows f_i - m themselves if n <= d, else QR factors of blocks. C is never
  formed, so its small eigenvalues keep their digits. Raises ValueError for fewer than two records, or
  for a feature that is NaN or infinite.
  """
  features = np.asarray(features)
  n, d = features.shape
  if n < 2:
    raise ValueError(f'{n} record(s) have no covariance: give at least 2')
  if n <= d:
    features = _finite(features)
    mean = features.mean(0)
    return Moments(mean, (features - mean) / math.sqrt(n - 1))
  step = max(_rows(d), d)
  blocks = [slice(i, i + step) for i in range(0, n, step)]
  mean = sum(_finite(features[rows]).sum(0) for rows in blocks) / n
  root = np.zeros((0, d))
  for rows in blocks:
    root = np.linalg.qr(np.concatenate([root, features[rows] - mean]), mode='r')
  return Moments(mean, root / math.sqrt(n - 1))


def frechet_distance(a: Moments, b: Moments) -> float:
  """|m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) of moments with covariances A and B.

  The squared 2-Wasserstein distance of the two Gaussians; covariances may be singular. With n
  records in each set it is biased upwards by about 1/n: compare equal n only. Raises ValueError
  where the dimensions differ or a moment is NaN or infinite.
  """
  if len({len(a.mean), len(b.mean), a.root.shape[1], b.root.shape[1]}) > 1:
    raise ValueError(f'moments of dimension {len(a.mean)} and {len(b.mean)} (roots {a.root.shape} and '
                     f'{b.root.shape}): compute both in one feature space')
  if not all(np.isfinite(moment).all() for moment in (*a, *b)):
    raise ValueError('a moment is NaN or infinite: find the records that it was computed from')
  # tr (A^1/2 B A^1/2)^1/2 is the sum of the singular values of R_a R_b^T, for any roots. Square roots
  # of eigenvalues would turn a rounding of 1e-16 into 1e-8, once for every dimension not spanned.
  cross = np.linalg.svd(a.root @ b.root.T, compute_uv=False).sum()
  squares = [np.square(each).sum() for each in (a.mean - b.mean, a.root, b.root)]
  return max(float(sum(squares) - 2 * cross), 0.0)


def manifold(features: Features, *, k: int = 3) -> Manifold:
  """Balls around features [n, d], each reaching to the k-th nearest other point.

  Raises ValueError where a feature is NaN or infinite, or fewer than k other points exist.
  """
  points = _finite(features)
  if not 1 <= k < len(points):
    raise ValueError(f'k={k} for {len(points)} records: choose 1 <= k < n')
  return Manifold(points, _kth(points, points, k, np.arange(len(points)))[1])


def precision_recall(real: Manifold, fake: Manifold) -> tuple[float, float]:
  """The fraction of `fake` in the manifold of `real`, and of `real` in the manifold of `fake`.

  A point at distance of exactly the radius is inside. Raises ValueError where the dimensions differ.
  [Kynkäänniemi+ 1904.06991]
  """
  _check_dimensions('real', real.points, 'fake', fake.points)
  precise, recalled = np.zeros(len(fake.points), bool), np.zeros(len(real.points), bool)
  for rows, squared, error in _squared_blocks(fake.points, real.points):
    block = Manifold(fake.points[rows], fake.radii[rows])
    precise[rows] = _inside(block.points, real, squared, error)
    recalled |= _inside(real.points, block, squared.T, error.T)
  return float(precise.mean()), float(recalled.mean())


def nearest_distance(a: Features, b: OtherFeatures | None = None) -> Float[np.ndarray, 'n']:
  """min_j |a_i - b_j|^2 for every record of a [n, d], [n] float64: 0 for a copy, exactly.

  Without b, the nearest other record of a: the distance to expect of new data.
  Raises as `nearest` does.
  """
  return nearest(a, b)[1]


def nearest(a: Features, b: OtherFeatures | None = None, *,
            leave: Integer[np.ndarray, 'n'] | None = None) -> tuple[
                Int[np.ndarray, 'n'], Float[np.ndarray, 'n']]:
  """(j, |a_i - b_j|^2) of the record of b [m, d] that is nearest to each record of a [n, d].

  `leave` [n] is the record of b that each excludes: itself, where a is b[leave]. Without b, the nearest
  other record of a. Raises ValueError where d differs, a feature is NaN or infinite, or b is too small.
  """
  if b is None:
    b, leave = a, np.arange(len(a))
  a, b = _finite(a), _finite(b)
  _check_dimensions('a', a, 'b', b)
  least = 1 if leave is None else 2
  if len(b) < least:
    raise ValueError(f'{len(b)} record(s) to search: give at least {least}')
  return _kth(a, b, 1, leave)


def _rows(length):
  return max(1, _NUMBERS // max(1, length))


def _finite(features):
  features = np.asarray(features, np.float64)
  if not np.isfinite(features).all():
    bad = np.flatnonzero(~np.isfinite(features).all(1))
    raise ValueError(f'{len(bad)} of {len(features)} records contain NaN or inf: '
                     'find the sampler or network that produced them')
  return features


def _check_dimensions(name, a, other_name, b):
  if a.shape[1] != b.shape[1]:
    raise ValueError(f'{name} has {a.shape[1]} features, {other_name} {b.shape[1]}: '
                     'compute both in one feature space')


def _squared_blocks(a, b):
  """Slices of rows with |a_i - b_j|^2 through one matrix product, and bounds on their errors."""
  centre, same = b.mean(0), a is b
  b = b - centre
  norm_b = np.square(b).sum(1)
  unit = 4 * (a.shape[1] + 2) * np.finfo(np.float64).eps
  for start in range(0, len(a), _rows(len(b))):
    rows = slice(start, start + _rows(len(b)))
    # Of b b^T, which is symmetric, BLAS computes half.
    block = b[rows] if same else a[rows] - centre
    sizes = np.square(block).sum(1)[:, None] + norm_b
    yield rows, sizes - 2 * (block @ b.T), unit * sizes


def _between(a, b):
  return np.square(a - b).sum(1)


def _kth(a, b, k, leave):
  """([n], [n]): which record of b is the k-th nearest, and its squared distance."""
  index, out = np.empty(len(a), np.int64), np.empty(len(a))
  for rows, squared, _ in _squared_blocks(a, b):
    if leave is not None:
      squared[np.arange(len(squared)), leave[rows]] = math.inf
    index[rows] = np.argpartition(squared, k - 1, axis=1)[:, k - 1]
    out[rows] = _between(a[rows], b[index[rows]])
  return index, out


def _inside(points, manifold, squared, error):
  """[n] whether any |point_i - centre_j|^2, which is squared[i, j] +- error[i, j], is <= radii_j."""
  centres, radii = manifold
  inside = (squared < radii - error).any(1)
  # Where rounding could decide, as for duplicates, compute the difference itself: to one centre of each
  # point, then to the next one of each point that is not inside yet.
  i, j = np.nonzero((np.abs(squared - radii) <= error) & ~inside[:, None])
  order = np.argsort(np.arange(len(i)) - np.searchsorted(i, i), kind='stable')
  step = _rows(points.shape[1])
  for start in range(0, len(i), step):
    pairs = order[start:start + step]
    pairs = pairs[~inside[i[pairs]]]
    inside[i[pairs[_between(points[i[pairs]], centres[j[pairs]]) <= radii[j[pairs]]]]] = True
  return inside
