"""Densities are what they claim, grids are those of the papers, blind spots are refused."""

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from eqflow import fields, outputs, processes, times
from tests import rows

DENSITIES = {
    'uniform': (times.uniform, scipy.stats.uniform()),
    'uniform_on': (times.uniform_on(0.2, 0.7), scipy.stats.uniform(0.2, 0.5)),
    'lognormal': (times.lognormal(-1.2, 1.2), scipy.stats.lognorm(1.2, scale=np.exp(-1.2))),
}


@pytest.mark.parametrize('name', DENSITIES)
def test_densities_agree_with_scipy(name, x64):
  density, reference = DENSITIES[name]
  u = np.linspace(0.001, 0.999, 101)
  t = density.quantile(jnp.asarray(u))
  np.testing.assert_allclose(t, reference.ppf(u), rtol=1e-9)
  np.testing.assert_allclose(density.pdf(t), reference.pdf(reference.ppf(u)), rtol=1e-9)


def test_logit_normal_is_a_normal_in_its_logit(x64):
  density, u = times.logit_normal(0.5, 0.8), np.linspace(0.001, 0.999, 101)
  t = np.asarray(density.quantile(jnp.asarray(u)))
  np.testing.assert_allclose(np.log(t / (1 - t)), scipy.stats.norm(0.5, 0.8).ppf(u), rtol=1e-8)
  mass, _ = scipy.integrate.quad(lambda t: float(density.pdf(jnp.asarray(t))), 1e-9, 1 - 1e-9)
  assert abs(mass - 1) < 1e-6, f'the density integrates to {mass}'


def test_u_is_never_zero_or_one():
  # The largest and smallest floats that a uniform draw in [0, 1) of 23 bits can give.
  for k, offset in ((0, 0), (0, 2**32 - 1)):
    u = times.low_discrepancy(k, np.uint32(offset))
    assert 0 < u < 1
  u = times.draw(jax.random.split(jax.random.key(0), 1000))
  assert (u > 0).all() and (u < 1).all()


def test_the_golden_sequence_is_that_of_exact_arithmetic_even_at_the_end_of_its_range():
  k = np.concatenate([np.arange(1000), 2**32 - 1 - np.arange(1000)]).astype(np.uint32)
  exact = np.array([((int(i) * 2654435769 + 77) % 2**32 >> 9) * 2.0**-23 + 2.0**-24 for i in k])
  np.testing.assert_array_equal(times.low_discrepancy(k, np.uint32(77)), exact)


@pytest.mark.parametrize('start', [0, 10**6, 4 * 10**9])
def test_any_run_of_the_golden_sequence_covers_the_unit_interval_evenly(start):
  u = np.sort(times.low_discrepancy((start + np.arange(1024)).astype(np.uint32), np.uint32(5)))
  worst = np.abs(u - (np.arange(1024) + 0.5) / 1024).max()
  # Random draws would be off by about 0.03.
  assert worst < 0.004, f'a run of 1,024 leaves a hole of {worst:.4f}'


def test_the_karras_grid_is_edms():
  grid = times.karras_grid(32)
  assert len(grid) == 33 and grid[0] == pytest.approx(80) and grid[31] == pytest.approx(0.002)
  assert grid[32] == 0
  for at, sigma in ((13, 4.9991), (17, 1.6086), (19, 0.8446), (22, 0.2830)):
    assert grid[at] == pytest.approx(sigma, abs=6e-5), f'sigma_{at} is {grid[at]}'


def test_the_log_snr_grid_is_even_in_log_snr_in_float64():
  grid = times.logsnr_grid(16, process=processes.linear, start=-8.0, end=8.0)
  assert grid.dtype == np.float64
  # lambda = 2 log((1 - t)/t).
  np.testing.assert_allclose(2 * np.log((1 - grid) / grid), np.linspace(-8, 8, 17), atol=1e-12)
  with pytest.raises(ValueError, match='num_steps=0'):
    times.uniform_grid(0)


@pytest.mark.parametrize('process,output,grid,message', [
    ('linear', 'eps', times.uniform_grid(10),
     r"output 'eps' cannot give x at t=1: start the grid at t<=0.999999 or train 'v'"),
    ('cosine', 'score', times.uniform_grid(10), r"output 'score' cannot give x at t=1"),
    ('linear', 'x', [0.5, 0.0, 0.0],
     r"output 'x' cannot give x at t=0: end the grid at t>=1e-06 or train 'v'"),
    ('linear', 'equilibrium_truncated', [0.5, 0.0, 0.0], r"output 'equilibrium' cannot give x at"),
    ('linear', 'v', [0.0, 0.5, 1.0], r'times rise from 0 to 0.5'),
    ('linear', 'v', [1.5, 0.0], r"process 'linear' at t=1.5 is not a mix"),
    ('edm', 'v', [80.0, -1.0], r"process 'edm' at t=-1 is not a mix"),
    ('linear', 'v', [np.nan, 0.0], r'a grid is at least two finite times'),
    ('linear', 'v', [1.0], r'a grid is at least two finite times'),
])
def test_a_grid_that_cannot_work_is_refused_with_the_remedy(process, output, grid, message):
  with pytest.raises(ValueError, match=message):
    times.check_grid(np.asarray(grid), process=rows.PROCESSES[process],
                     output=rows.OUTPUTS[output])


def test_the_remedy_works():
  times.check_grid(times.uniform_grid(10, start=0.999999), process=processes.linear,
                   output=outputs.eps)
  times.check_grid(np.array([0.5, 1.01e-6, 0.0]), process=processes.linear, output=outputs.x)


@pytest.mark.parametrize('output', ['v', 'u', 'x', 'edm', 'equilibrium_truncated'])
def test_outputs_that_see_pure_noise_may_start_there(output):
  times.check_grid(times.uniform_grid(10), process=processes.linear, output=rows.OUTPUTS[output])


def test_a_noise_label_that_is_not_finite_is_refused():
  grid = times.uniform_grid(10)
  times.check_grid(grid, process=processes.linear, output=outputs.v, label_noise=fields.time)
  with pytest.raises(ValueError, match="noise label 'logsnr' is not finite at t=1"):
    times.check_grid(grid, process=processes.linear, output=outputs.v, label_noise=fields.logsnr)


def test_the_check_is_silent_where_numbers_are_traced():
  def check(beta_max):
    process = Partial(processes.variance_preserving, beta_min=0.1, beta_max=beta_max)
    times.check_grid(np.array([1.0, 0.0]), process=process, output=outputs.u)
    return beta_max
  jax.jit(check)(20.0)
