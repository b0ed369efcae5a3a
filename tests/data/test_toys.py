"""Toy data: scale, densities, splits."""


import numpy as np
import pytest

from eqflow.data import sources, toys


@pytest.mark.parametrize('name', sorted(sources.TOYS))
def test_a_toy_has_unit_scale(name):
  draw, num_classes = sources.TOYS[name]
  x, label = draw(40_000, 0)
  assert x.dtype == np.float32 and x.shape == (40_000, 2) and label.dtype == np.int32
  np.testing.assert_allclose(x.mean(0), 0, atol=0.03, err_msg='the mean must be 0')
  assert abs((x ** 2).mean() - 1) < 0.02, f'E|x|^2 / 2 is {(x ** 2).mean():.3f}, not 1'
  np.testing.assert_allclose(np.bincount(label) * num_classes / 40_000, 1, atol=0.1,
                             err_msg='the classes must be equally likely')


@pytest.mark.parametrize('name', sorted(sources.TOYS))
def test_a_toy_depends_only_on_count_and_seed(name):
  draw, _ = sources.TOYS[name]
  for part, same in zip(draw(100, 7), draw(300, 7)):
    np.testing.assert_array_equal(part, same[:100], 'the first points depend on how many follow')
  assert (draw(100, 7)[0] != draw(100, 8)[0]).any(), 'the seed is ignored'


def test_toys_have_their_documented_densities():
  x, label = toys.moons(1_000)
  centre = np.where(label[:, None] == 1, [0.5, 0.25], [-0.5, -0.25])
  distance = np.linalg.norm(x / np.sqrt(2) - centre, axis=1)
  assert np.abs(distance - 1).max() < 0.25, 'the moons are not circles of radius 1'
  x, label = toys.checkerboard(1_000)
  square = np.floor(x / (np.sqrt(3) / 2) + 2).astype(int)
  assert ((square.sum(1) % 2 == 0) & (square >= 0).all(1) & (square < 4).all(1)).all(), (
      'a point lies on a light square')
  assert (label == 2 * square[:, 0] + square[:, 1] // 2).all(), 'wrong squares'
  x, label = toys.rings(1_000)
  radius = np.linalg.norm(x, axis=1)
  assert np.abs(radius - np.sqrt(3 / 7) * (label + 1)).max() < 0.25, 'wrong rings'
  x, label = toys.mixture(10_000)
  assert np.allclose(x[label == 2].mean(0), [0, np.sqrt(1.98)], atol=0.02), 'wrong centre'
  assert np.allclose(x[label == 2].std(0), 0.1, atol=0.01), 'wrong width'


def test_toy_splits_are_disjoint():
  train, heldout, whole = [sources.load('rings', split=split, data_dir=None, num_points=80, seed=4)
                           for split in ('train', 'heldout', 'all')]
  assert (len(train), len(heldout), train.shape, train.num_classes) == (80, 80, (2,), 3)
  np.testing.assert_array_equal(np.concatenate([train.records.x, heldout.records.x]),
                                whole.records.x, 'all must be train and heldout')
  np.testing.assert_array_equal(train.records.x, toys.rings(80, 4)[0])
