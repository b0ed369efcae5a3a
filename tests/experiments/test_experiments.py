"""The tree's density, when snapshots are written, and that stored distances are drawn."""

import numpy as np
import pytest

from experiments.autoguidance import tree
from experiments.posthoc_ema import figures, quality


def test_tree_density_matches_its_points():
  # On a grid finer than the thinnest branch: the density sums to 1 and has the points' moments.
  side = np.linspace(-3, 3, 751)
  grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
  inside = grid[(abs(grid) < 2.2).all(1)]
  mass = np.exp(tree.log_density(inside, 0)) * (side[1] - side[0]) ** 2
  np.testing.assert_allclose(mass.sum(), 1, atol=1e-3)
  x = tree.points(0, 20_000, seed=3)
  np.testing.assert_allclose(mass @ inside, x.mean(0), atol=0.02)
  np.testing.assert_allclose(mass @ inside**2, np.square(x).mean(0), atol=0.02)


@pytest.mark.parametrize('data', quality.DATA)
def test_snapshots_are_written_at_half_and_at_the_end_of_a_run(data):
  *_, examples, rates = quality.DATA[data]
  config = quality.config_of(data, rates[0], 0)
  every = config.ema.snapshot_examples
  assert every % config.train.batch == 0, 'snapshots are written after whole batches'
  assert examples % every == 0 and (examples // 2) % every == 0


def test_all_stored_distances_are_drawn():
  found = figures.curves('digits')
  *_, examples, rates = quality.DATA['digits']
  assert set(found) == {(rate, n) for rate in rates for n in (examples // 2, examples)}
  assert all(rows.shape == (len(quality.SEEDS), len(quality.STDS)) for rows in found.values())
  figure = figures.draw(found)
  assert len(figure.axes[0].lines) == 2 * len(found), 'a curve and its minimum each'
