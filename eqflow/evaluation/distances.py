"""How far two sets of features [n, d] are apart; numpy, float64, in blocks of bounded memory."""

import math

from jaxtyping import Array, Bool, Float, Int, Integer, Shaped
import numpy as np

Features = Shaped[Array | np.ndarray, 'n d']
OtherFeatures = Shaped[Array | np.ndarray, '_ _']
Moments = tuple[Float[np.ndarray, '_'], Float[np.ndarray, '_ _']]
_NUMBERS = 2 ** 22  # in one block: 32 MB in float64


def moments(features: Features) -> tuple[Float[np.ndarray, 'd'], Float[np.ndarray, 'd d']]:
  """(m, C) = (mean_i f_i, sum_i (f_i - m)(f_i - m)^T / (n - 1)) of features [n, d], in float64.

  Raises ValueError for fewer than two records, or for a feature that is not finite.
  """
  features = np.asarray(features)
  n, d = features.shape
  if n < 2:
    raise ValueError(f'{n} record(s) have no covariance: give at least 2')
  blocks = [slice(i, i + _rows(d)) for i in range(0, n, _rows(d))]
  mean = sum(_finite(features[rows]).sum(0) for rows in blocks) / n
  cov = np.zeros((d, d))
  for rows in blocks:
    centred = features[rows].astype(np.float64) - mean
    cov += centred.T @ centred
  return mean, cov / (n - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
  """|m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) of moments (m_a, A) and (m_b, B).

  The squared 2-Wasserstein distance of the two Gaussians; covariances may be singular. With n
  records a set it is biased upwards, about as 1/n: compare equal n only. Raises ValueError where
  the dimensions differ or a moment is not finite.
  """
  (mean_a, cov_a), (mean_b, cov_b) = a, b
  if len({mean_a.shape, mean_b.shape, cov_a.shape[:1], cov_b.shape[:1]}) > 1:
    raise ValueError(f'moments of dimension {len(mean_a)} and {len(mean_b)} (covariances '
                     f'{cov_a.shape} and {cov_b.shape}): take both in one feature space')
  if not all(np.isfinite(moment).all() for moment in (*a, *b)):
    raise ValueError('a moment holds nan or inf: find the records it was made of')
  # The trace of the root is the sum of the singular values of A^1/2 B^1/2. Roots of eigenvalues
  # would turn a rounding of 1e-16 into 1e-8, once for every dimension that is not spanned.
  cross = np.linalg.svd(_root(cov_a) @ _root(cov_b), compute_uv=False).sum()
  distance = np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
  return max(float(distance), 0.0)


def precision_recall(real: Features, fake: OtherFeatures, *, k: int = 3) -> tuple[float, float]:
  """The shares of `fake` inside the manifold of `real`, and of `real` inside that of `fake`.

  A set's manifold is the union of balls around its points, each reaching to the k-th nearest
  other point of the set; ties count as inside. Features are [n, d] and [m, d]. Raises ValueError
  where d differs, a feature is not finite, or a set has no k other points.
  [Kynkäänniemi+ 1904.06991]
  """
  real, fake = _pair('real', real, 'fake', fake)
  for name, points in (('real', real), ('fake', fake)):
    if not 1 <= k < len(points):
      raise ValueError(f'k={k} for {len(points)} records of {name}: take 1 <= k < n')
  precision = _covered(fake, real, _kth_nearest(real, None, k)).mean()
  recall = _covered(real, fake, _kth_nearest(fake, None, k)).mean()
  return float(precision), float(recall)


def nearest_distance(a: Features, b: OtherFeatures | None = None) -> Float[np.ndarray, 'n']:
  """min_j |a_i - b_j|^2 for every record of a [n, d], [n] float64: 0 for a copy, exactly.

  Without b, the nearest other record of a itself: what a new record of the data would show.
  Raises as `nearest` does.
  """
  return nearest(a, b)[1]


def nearest(a: Features, b: OtherFeatures | None = None, *,
            leave: Integer[np.ndarray, 'n'] | None = None) -> tuple[
                Int[np.ndarray, 'n'], Float[np.ndarray, 'n']]:
  """(j, |a_i - b_j|^2) of the record of b [m, d] that is nearest to each record of a [n, d].

  `leave` [n] names a record of b that each does not look at: itself, where a is b[leave]. Without b,
  the nearest other record of a. Raises ValueError where d differs, a feature is not finite, or there
  is nothing to be near to.
  """
  if b is None:
    b, leave = a, np.arange(len(a))
  a, b = _pair('a', a, 'b', b)
  if len(b) < (1 if leave is None else 2):
    raise ValueError(f'{len(b)} record(s) to be near to: give b at least one, '
                     'or a alone at least two')
  return _kth(a, b, 1, leave)


def _root(cov):
  values, vectors = np.linalg.eigh(cov)
  return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def _rows(length):
  return max(1, _NUMBERS // max(1, length))


def _finite(features):
  features = np.asarray(features, np.float64)
  if not np.isfinite(features).all():
    bad = np.flatnonzero(~np.isfinite(features).all(1))
    raise ValueError(f'{len(bad)} of {len(features)} records hold nan or inf: '
                     'find out which sampler or network made them')
  return features


def _pair(name, a, other_name, b):
  a, b = _finite(a), _finite(b)
  if a.shape[1] != b.shape[1]:
    raise ValueError(f'{name} has {a.shape[1]} features, {other_name} {b.shape[1]}: '
                     'take both in one feature space')
  return a, b


def _squared_blocks(a, b):
  """Slices of rows with |a_i - b_j|^2 through one matrix product, and bounds on their errors."""
  centre = b.mean(0)
  b = b - centre
  norm_b = np.square(b).sum(1)
  unit = 4 * (a.shape[1] + 2) * np.finfo(np.float64).eps
  for start in range(0, len(a), _rows(len(b))):
    rows = slice(start, start + _rows(len(b)))
    block = a[rows] - centre
    sizes = np.square(block).sum(1)[:, None] + norm_b
    yield rows, sizes - 2 * block @ b.T, unit * sizes


def _between(a, b):
  return np.square(a - b).sum(1)


def _kth_nearest(a, b, k):
  """[n] |a_i - its k-th nearest of b|^2, b None: of the other records of a."""
  return (_kth(a, a, k, np.arange(len(a))) if b is None else _kth(a, b, k, None))[1]


def _kth(a, b, k, leave):
  """([n], [n]): which record of b is the k-th nearest, and its squared distance."""
  index, out = np.empty(len(a), np.int64), np.empty(len(a))
  for rows, squared, _ in _squared_blocks(a, b):
    if leave is not None:
      squared[np.arange(len(squared)), leave[rows]] = math.inf
    index[rows] = np.argpartition(squared, k - 1, axis=1)[:, k - 1]
    out[rows] = _between(a[rows], b[index[rows]])
  return index, out


def _covered(points, centres, radii) -> Bool[np.ndarray, '_']:
  """[n] whether any |point - centre_j|^2 <= radii_j."""
  out = np.empty(len(points), bool)
  step = _rows(points.shape[1])
  for rows, squared, error in _squared_blocks(points, centres):
    inside = (squared < radii - error).any(1)
    # Where rounding could decide, as for duplicates, the difference itself does.
    i, j = np.nonzero((np.abs(squared - radii) <= error) & ~inside[:, None])
    for start in range(0, len(i), step):
      some, those = i[start:start + step], j[start:start + step]
      within = _between(points[rows][some], centres[those]) <= radii[those]
      inside[some[within]] = True
    out[rows] = inside
  return out
