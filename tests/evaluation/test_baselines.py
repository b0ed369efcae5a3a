"""Baselines: halves, bootstrap, Gaussians."""

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from eqflow.evaluation import baselines


def test_halves_are_disjoint_and_complete():
  x = np.arange(11.)[:, None]
  a, b = baselines.halves(x, 0)
  assert (len(a), len(b)) == (5, 6), 'the halves of eleven are five and six'
  assert sorted(np.concatenate([a, b])[:, 0]) == list(range(11)), 'each record is in one half'
  assert_array_equal(a, baselines.halves(x, 0)[0], err_msg='the same seed must give the same half')


def test_a_bootstrap_draws_with_replacement():
  x = np.arange(1000.)[:, None]
  kinds = np.unique(baselines.bootstrap(x, 0))
  assert set(kinds) <= set(range(1000)), 'only records of the data may be drawn'
  # n (1 - 1/e) different ones are expected, with a standard deviation of 0.31 sqrt(n).
  assert abs(len(kinds) - 632) < 40, f'{len(kinds)} different records of 1000; 632 are expected'


def test_a_gaussian_has_the_moments_of_the_data():
  rng = np.random.default_rng(0)
  root, mean = rng.standard_normal((3, 3)), np.array([5., 0, -1])
  x = rng.standard_normal((20000, 3)) @ root + mean
  fake = baselines.gaussian(x, 1, clip=False)
  assert_allclose(fake.mean(0), mean, atol=.1, err_msg='the mean differs from the mean of the data')
  assert_allclose(np.cov(fake, rowvar=False), root.T @ root, atol=.2,
                  err_msg='the covariance differs from the covariance of the data')
  assert abs(np.mean((fake - mean) ** 4) / np.mean((x - mean) ** 4) - 1) < .1, \
    'the fourth moment differs from a Gaussian'
  assert np.abs(baselines.gaussian(x, 1)).max() == 1, 'clipped draws reach 1 and no further'


def test_a_gaussian_of_few_records_stays_in_their_span():
  x = np.random.default_rng(0).standard_normal((4, 6, 6, 1)).astype(np.float32)
  fake = baselines.gaussian(x, 0, clip=False)
  assert fake.shape == x.shape and fake.dtype == x.dtype, 'shape and dtype must match'
  differences = (np.concatenate([x, fake]) - x[0]).reshape(8, -1)
  assert np.linalg.matrix_rank(differences, tol=1e-4) == 3, 'four records span three dimensions'


def test_a_gaussian_per_class_keeps_the_order_of_labels():
  rng = np.random.default_rng(0)
  label = rng.integers(0, 3, 3000)
  x = rng.normal(0, [[.5], [.1], [.2]], (3, 2))[label] + .01 * rng.standard_normal((3000, 2))
  fake = baselines.gaussian_per_class(x, label, 0)
  for y in range(3):
    assert_allclose(fake[label == y].mean(0), x[label == y].mean(0), atol=.002,
                    err_msg=f'samples of class {y} have another mean')
    assert_allclose(fake[label == y].std(0), .01, rtol=.1,
                    err_msg=f'class {y} has another standard deviation')
  single = baselines.gaussian_per_class(x[:3], np.array([0, 1, 2]), 0)
  assert_allclose(single, x[:3], err_msg='a class of one record must repeat it')
