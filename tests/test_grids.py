"""Grids are as the papers define them."""

import inspect
import math

import numpy as np
import pytest

from eqflow import grids, processes


def test_the_karras_grid_has_the_papers_times():
  grid = grids.karras(32)
  assert len(grid) == 33 and grid[0] == pytest.approx(80) and grid[31] == pytest.approx(0.002)
  assert grid[32] == 0
  for at, sigma in ((13, 4.9991), (17, 1.6086), (19, 0.8446), (22, 0.2830)):
    assert grid[at] == pytest.approx(sigma, abs=6e-5), f'sigma_{at} is {grid[at]}'


def test_the_karras_grid_on_the_linear_process_has_the_same_noise_to_signal_ratios():
  grid = grids.karras(12, sigma_max=20.0)
  np.testing.assert_allclose(grids.karras(12, process=processes.linear, sigma_max=20.0),
                             grid / (1 + grid), rtol=1e-10)


def test_the_logsnr_grid_is_even_in_log_snr_in_float64():
  grid = grids.logsnr(16, process=processes.linear, start=-8.0, end=8.0)
  assert grid.dtype == np.float64
  # lambda = 2 log((1 - t)/t).
  np.testing.assert_allclose(2 * np.log((1 - grid) / grid), np.linspace(-8, 8, 17), atol=1e-12)


@pytest.mark.parametrize('grid,named', [
    (lambda: grids.uniform(3, start=math.nan), 'start=nan'),
    (lambda: grids.uniform(3, end=-math.inf), 'end=-inf'),
    (lambda: grids.karras(3, sigma_max=math.inf), 'sigma_max=inf')])
def test_the_ends_of_a_grid_are_finite(grid, named):
  with pytest.raises(ValueError, match=named):
    grid()


def test_the_number_of_steps_is_a_positive_whole_number():
  with pytest.raises(ValueError, match='num_steps=0'):
    grids.uniform(0)
  # Without the type checks of the tests, which would reject 2.5 first.
  with pytest.raises(ValueError, match='num_steps=2.5'):
    inspect.unwrap(grids.uniform)(2.5)
