"""Fréchet distances against scipy and closed forms, manifolds and neighbours against brute force."""

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import pytest
import scipy.linalg
from sklearn.neighbors import NearestNeighbors

from eqflow.evaluation import distances, features
from eqflow.evaluation.distances import Moments


@pytest.fixture
def small_blocks(monkeypatch):
  """Blocks of a few records, so that small sets meet the seams as well."""
  monkeypatch.setattr(distances, '_NUMBERS', 100)


def root_of(cov):
  """A root R with R^T R = cov, by scipy."""
  return np.real(scipy.linalg.sqrtm(cov))


def rotation(rng, d):
  return np.linalg.qr(rng.standard_normal((d, d)))[0]


def test_moments_agree_with_numpy_for_any_block_size(small_blocks):
  x = np.random.default_rng(0).normal(3, 2, (57, 7)).astype(np.float32)
  mean, root = distances.moments(x)
  assert_allclose(mean, x.astype(float).mean(0), rtol=1e-12, err_msg='mean differs from numpy')
  assert_allclose(root.T @ root, np.cov(x.astype(float), rowvar=False), rtol=1e-12,
                  err_msg='covariance differs from the unbiased np.cov')
  assert mean.dtype == root.dtype == np.float64, 'moments of float32 features must be float64'


@pytest.mark.parametrize('d', [1, 2, 5, 40])
def test_frechet_distance_equals_the_formula_with_scipys_matrix_root(d):
  rng = np.random.default_rng(d)
  m, n = rng.standard_normal((2, d))
  roots = rng.standard_normal((2, 2 * d, d))
  a, b = [root.T @ root for root in roots]
  want = np.sum((m - n) ** 2) + np.trace(a + b - 2 * np.real(scipy.linalg.sqrtm(a @ b)))
  got = distances.frechet_distance(Moments(m, roots[0]), Moments(n, roots[1]))
  assert abs(got - want) < 1e-9 * want, f'{got} differs from the value through sqrtm, {want}'


def test_frechet_distance_of_commuting_covariances():
  rng = np.random.default_rng(0)
  s, t, m = rng.random((3, 6))
  turn = rotation(rng, 6)
  a, b = [root_of((turn * deviation ** 2) @ turn.T) for deviation in (s, t)]
  got = distances.frechet_distance(Moments(m, a), Moments(np.zeros(6), b))
  want = np.sum(m ** 2) + np.sum((s - t) ** 2)
  assert abs(got - want) < 1e-12, f'{got} differs from |m|^2 + |s - t|^2 = {want}'


def test_frechet_distance_is_symmetric_and_invariant_to_rotations():
  rng = np.random.default_rng(1)
  x, y, turn = rng.standard_normal((30, 8)), rng.random((25, 8)), rotation(rng, 8)
  plain, turned, swapped = [
    distances.frechet_distance(distances.moments(a), distances.moments(b))
    for a, b in ((x, y), (x @ turn, y @ turn), (y, x))]
  assert abs(turned - plain) < 1e-12 * plain, 'rotating both sets must not move the distance'
  assert abs(swapped - plain) < 1e-12 * plain, 'the distance must be symmetric'


def test_frechet_distance_of_singular_covariances():
  zero = np.zeros(2)
  apart = distances.frechet_distance(Moments(zero, np.diag([2., 0.])),
                                     Moments(zero, np.diag([0., 3.])))
  assert abs(apart - 13) < 1e-12, f'segments at right angles are 4 + 9 apart, not {apart}'
  points = distances.frechet_distance(Moments(zero, np.zeros((0, 2))),
                                      Moments(zero + 3, np.zeros((2, 2))))
  assert abs(points - 18) < 1e-12, f'point masses are |3, 3|^2 = 18 apart, not {points}'
  few = np.random.default_rng(2).standard_normal((5, 300))
  same, moved = [distances.frechet_distance(distances.moments(few), distances.moments(few + shift))
                 for shift in (0, .01)]
  assert 0 <= same < 1e-9, f'five records in 300 dimensions are {same} from themselves'
  assert abs(moved - 300 * 1e-4) < 1e-9, f'moving all by .01 costs 300 * .01^2, not {moved}'


@pytest.mark.parametrize('n', [6, 39, 40, 41, 200])
def test_frechet_distance_of_few_and_of_many_records(n):
  rng = np.random.default_rng(n)
  x, y = rng.standard_normal((2, n, 40)) * np.geomspace(1, 1e-3, 40)
  a, b = (np.cov(each, rowvar=False) for each in (x, y))
  # Square roots of the eigenvalues of A B; the smallest are rounding errors for few records.
  cross = np.sqrt(np.maximum(np.real(scipy.linalg.eigvals(a @ b)), 0)).sum()
  want = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a + b) - 2 * cross
  got = distances.frechet_distance(distances.moments(x), distances.moments(y))
  assert abs(got - want) < 1e-6 * want, f'{n} records: {got} differs from {want}'


def test_frechet_distance_of_singular_sets_of_32x32x3_has_all_its_digits():
  rng = np.random.default_rng(7)
  deviation = np.geomspace(100, .1, 3072)
  x, y = (np.rint(rng.standard_normal((n, 3072)) * deviation + mean) / 8
          for n, mean in ((9, 0), (11, 3)))
  y[4] = y[3]
  found = distances.frechet_distance(*(distances.moments(each.astype(np.float32)) for each in (x, y)))
  # The number is from mpmath, with 40 digits.
  assert abs(found - 67870.165316396218517) < 1e-12 * found, f'{found!r}'


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_moments_and_distances_reject_other_dimensions_and_nan(bad):
  x = np.zeros((4, 3))
  with pytest.raises(ValueError, match='^1 record'):
    distances.moments(x[:1])
  with pytest.raises(ValueError, match='dimension 3 and 2'):
    distances.frechet_distance(distances.moments(x), distances.moments(x[:, :2]))
  x[2, 1] = bad
  for measure in (distances.moments, distances.nearest_distance):
    with pytest.raises(ValueError, match='^1 of 4 records'):
      measure(x)
  with pytest.raises(ValueError, match='moment is NaN or infinite'):
    distances.frechet_distance(Moments(x[2], np.eye(3)), Moments(x[0], np.eye(3)))


def manifolds(real, fake, k):
  """Precision and recall by the paper's algorithm 1, loop by loop."""
  def fraction(centres, points):
    radii = [sorted(np.sum((c - o) ** 2) for i, o in enumerate(centres) if i != j)[k - 1]
             for j, c in enumerate(centres)]
    return np.mean([any(np.sum((p - c) ** 2) <= r for c, r in zip(centres, radii))
                    for p in points])
  return fraction(real, fake), fraction(fake, real)


@pytest.mark.parametrize('k', [1, 3])
@pytest.mark.parametrize('kind', ['normal', 'lattice', 'copies', 'far from zero'])
def test_precision_and_recall_equal_the_papers_algorithm(kind, k, small_blocks):
  rng = np.random.default_rng(k)
  real, fake = rng.normal(0, 1, (40, 3)), rng.normal(.5, .8, (30, 3))
  if kind == 'lattice':
    real, fake = np.rint(real) / 10, np.rint(fake) / 10
  if kind == 'copies':
    real, fake = real[rng.integers(0, 12, 40)], real[rng.integers(0, 25, 30)]
  if kind == 'far from zero':
    real, fake = real + 1e4, fake + 1e4
  got = distances.precision_recall(*(distances.manifold(x, k=k) for x in (real, fake)))
  want = manifolds(real, fake, k)
  assert got == want, f'{kind}: {got} differs from the brute force {want}'


def test_precision_and_recall_of_copies_of_far_records_and_of_one_mode():
  x = np.random.default_rng(0).random((200, 100)).astype(np.float32)
  measure = lambda *sets: distances.precision_recall(*map(distances.manifold, sets))
  assert measure(x, x) == (1, 1), 'a set covers itself'
  assert measure(x, x + 100) == (0, 0), 'sets that are far apart have precision and recall 0'
  collapsed = np.repeat(x[:1], 200, axis=0)
  assert measure(x, collapsed) == (1, 1 / 200), 'copies of one record recall that record alone'
  with pytest.raises(ValueError, match='k=3 for 3 records'):
    measure(x, x[:3])
  with pytest.raises(ValueError, match='real has 100 features, fake 99'):
    measure(x, x[:, 1:])


def test_copies_of_few_records_are_decided_without_all_their_differences(monkeypatch):
  x = np.random.default_rng(0).random((3, 300))[np.arange(300) % 3]
  sets, seen, between = [distances.manifold(each) for each in (x, x[::-1])], [], distances._between
  monkeypatch.setattr(distances, '_between', lambda a, b: seen.append(len(a)) or between(a, b))
  monkeypatch.setattr(distances, '_NUMBERS', 300 * 300)
  assert distances.precision_recall(*sets) == (1, 1)
  assert sum(seen) < 4 * 300, f'{sum(seen)} differences for 300 records with 30,000 ties'


def test_nearest_distance_is_the_smallest_and_zero_for_copies(small_blocks):
  rng = np.random.default_rng(0)
  a, b = rng.random((30, 5)), rng.random((40, 5))
  want = np.square(a[:, None] - b).sum(2).min(1)
  assert_allclose(distances.nearest_distance(a, b), want, rtol=1e-12,
                  err_msg='differs from the smallest of all distances')
  assert not distances.nearest_distance(b[:9] + 1e5, b + 1e5).any(), 'a copy is at exactly zero'
  assert distances.nearest_distance(b).min() > 0, 'without b, a record must not be its own neighbour'


# The number is from another program.
def test_the_median_nearest_other_digit_is_at_a_known_distance(digits):
  median = np.median(distances.nearest_distance(features.pixels(digits[0])))
  assert abs(median - 4.06) < .005, f'the median squared distance was 4.06, not {median}'


def test_nearest_records_agree_with_scikit_learn(small_blocks):
  rng = np.random.default_rng(1)
  a, b = rng.normal(size=(23, 5)), rng.normal(size=(31, 5))
  distance, index = NearestNeighbors(n_neighbors=2).fit(b).kneighbors(a)
  found, squared = distances.nearest(a, b)
  np.testing.assert_array_equal(found, index[:, 0])
  assert_allclose(squared, distance[:, 0]**2, rtol=1e-12)
  distance, index = NearestNeighbors(n_neighbors=2).fit(b).kneighbors(b)
  found, squared = distances.nearest(b)
  np.testing.assert_array_equal(found, index[:, 1])
  assert_allclose(squared, distance[:, 1]**2, rtol=1e-12)
  some = np.array([30, 4, 17])
  assert_array_equal(distances.nearest(b[some], b, leave=some)[0], found[some])
