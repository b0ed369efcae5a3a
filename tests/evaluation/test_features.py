"""Pixels and random features."""

import jax
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import pytest

from eqflow.evaluation import features


def test_pixels_keep_small_images_and_pool_large_ones():
  rng = np.random.default_rng(0)
  small, large = rng.random((2, 32, 32, 3)), rng.random((2, 40, 48, 2))
  assert_array_equal(features.pixels(small), small.reshape(2, -1).astype(np.float32),
                     err_msg='3,072 elements must not be pooled')
  means = [large[:, i:i + 2, j:j + 2].mean((1, 2)) for i in range(0, 40, 2)
           for j in range(0, 48, 2)]
  assert_allclose(features.pixels(large), np.concatenate(means, axis=1), rtol=1e-6,
                  err_msg='3,840 elements must become means over 2x2 pixels')
  assert features.pixels(np.zeros((1, 256, 256, 3), np.float32)).shape == (1, 3072), \
    '256x256x3 must become 32x32x3'
  assert features.pixels(np.zeros((2, 5000))).shape == (2, 5000), 'vectors are not pooled'


@pytest.mark.parametrize('shape', [
    (57, 57, 1), (101, 100, 1), (1, 20_000, 1), (20_000, 1, 3), (513, 7, 4), (64, 65, 3)])
def test_images_of_any_sides_are_pooled_to_means(shape):
  x = np.random.default_rng(0).random((2, *shape)).astype(np.float32)
  found = features.pixels(x)
  assert found.shape[1] <= max(3072, shape[2])
  ones = features.pixels(np.ones((1, *shape), np.float32))
  assert_allclose(ones, 1, rtol=1e-6, err_msg='a mean of ones is one')
  # Every pixel counts, with about the same weight.
  weights = [features.pixels(np.eye(1, x[0].size, i, dtype=np.float32).reshape(1, *shape)).sum()
             for i in (0, x[0].size // 2, x[0].size - 1)]
  assert min(weights) > 0 and max(weights) <= 4 * min(weights), weights


def test_features_reject_integers_and_other_ranks():
  with pytest.raises(TypeError, match='uint8'):
    features.pixels(np.zeros((2, 8, 8, 1), np.uint8))
  with pytest.raises(ValueError, match='dim=256'):
    features.random_features(np.zeros((2, 8, 8)))


@pytest.mark.parametrize('shape', [(17, 33, 3), (2,), *(
    pytest.param(shape, marks=pytest.mark.long) for shape in [(8, 8, 1), (1, 5, 2), (64,)])])
def test_random_features_depend_only_on_the_record_and_the_seed(shape):
  x = np.random.default_rng(0).standard_normal((300, *shape)).astype(np.float32)
  first = features.random_features(x, dim=10)
  jax.clear_caches()
  assert_array_equal(features.random_features(x, dim=10), first, err_msg='calls differ')
  assert_allclose(features.random_features(x[::-1][:7], dim=10), first[::-1][:7], rtol=1e-5,
                  atol=1e-5, err_msg='the other records of a batch changed a feature')
  assert np.isfinite(first).all() and first.std(0).min() > 0, 'a feature is constant'
  assert np.abs(features.random_features(x, dim=10, seed=1) - first).max() > .1, 'seed is not used'
