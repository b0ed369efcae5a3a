"""Nearest training records against brute force."""

import numpy as np
import pytest

from eqflow.evaluation import memorization


def test_nearest_records_and_distances_between_records_by_brute_force():
  rng = np.random.default_rng(0)
  train, x = rng.normal(size=(40, 3)), rng.normal(size=(9, 3))
  x[:4] = train[[7, 3, 3, 30]]
  found = memorization.nearest(x, train)
  squared = np.square(x[:, None] - train).sum(2)
  between = np.square(train[:, None] - train).sum(2) + np.diag([np.inf] * 40)
  np.testing.assert_array_equal(found.index, squared.argmin(1))
  np.testing.assert_allclose(found.squared, squared.min(1), rtol=1e-5)
  np.testing.assert_allclose(found.others, between.min(1), rtol=1e-5)
  near = squared.min(1) < np.quantile(between.min(1), 0.05)
  assert found.copied == near.mean() and near[:4].all()


@pytest.mark.parametrize('rows', [[0, 1, 2, 3], [2]])
def test_the_mirror_image_of_a_record_is_not_another_record(rows):
  # The first record is nearly its own mirror image: 0.02 from it, 8 from the other record.
  x = np.zeros((2, 1, 2, 1), np.float32)
  x[0, 0, 0], x[1] = 0.1, 2
  train = np.concatenate([x, x[:, :, ::-1]])
  found = memorization.to_other_records(train, np.array(rows), flip=True)
  np.testing.assert_allclose(found, 1.9 ** 2 + 4, rtol=1e-6)
