"""Processes: their ends, their velocities and the inverse of their log-SNR."""

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np
import pytest

from eqflow import processes
from tests import rows

UNIT = [name for name in rows.PROCESSES if name != 'edm']


@pytest.mark.parametrize('name', UNIT)
def test_time_runs_from_data_to_noise(name):
  start, end = (rows.PROCESSES[name](jnp.float32(t)) for t in (0, 1))
  assert start.eps == 0 and start.x > 0.999, f'{name} is not data at t = 0'
  assert end.x < 0.007 and end.eps > 0.999, f'{name} is not noise at t = 1'


def test_cosine_is_exactly_noise_at_one_and_its_log_snr_is_no_nan():
  assert processes.cosine(jnp.float32(1)).x == 0
  assert processes.logsnr(processes.cosine, jnp.float32(1)) == -jnp.inf


@pytest.mark.parametrize('name', ['cosine', 'variance_preserving'])
def test_variance_is_preserved(name, x64):
  state = rows.PROCESSES[name](rows.times(name, 33, 'float64'))
  np.testing.assert_allclose(state.x**2 + state.eps**2, 1, rtol=1e-14)


def test_the_variance_preserving_process_solves_its_sde(x64):
  # alpha = exp(-int beta/2), beta rising linearly from 0.1 to 20: here by the trapezoidal rule.
  t = np.linspace(0, 1, 100_001)
  beta = 0.1 + t * 19.9
  integral = np.concatenate([[0], np.cumsum((beta[1:] + beta[:-1]) / 2 * np.diff(t))])
  process = rows.PROCESSES['variance_preserving']
  np.testing.assert_allclose(process(jnp.asarray(t)).x, np.exp(-integral / 2), rtol=1e-9)


@pytest.mark.parametrize('name', rows.PROCESSES)
def test_velocity_is_the_slope_of_the_process(name, x64):
  process, t = rows.PROCESSES[name], rows.times(name, 33, 'float64')
  h = 1e-4 * t
  slope = jax.tree.map(lambda a, b: (a - b) / (2 * h), process(t + h), process(t - h))
  for found, expected in zip(processes.rate(process, t), slope):
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('name', rows.PROCESSES)
def test_log_snr_falls_and_its_inverse_finds_the_time(name, x64):
  process, t = rows.PROCESSES[name], rows.times(name, 33, 'float64')
  value = processes.logsnr(process, t)
  assert (np.diff(value) < 0).all()
  high = 100.0 if name == 'edm' else 1.0
  found = processes.time_of_logsnr(process, value, high=high)
  np.testing.assert_allclose(found, t, rtol=1e-9)
  slope = jax.vmap(jax.grad(lambda v: processes.time_of_logsnr(process, v, high=high)))(value)
  np.testing.assert_allclose(slope, 1 / processes.logsnr_rate(process, t), rtol=1e-6)


def test_the_inverse_of_an_infinite_log_snr_is_the_nearer_end():
  ends = processes.time_of_logsnr(processes.linear, jnp.array([jnp.inf, -jnp.inf]))
  np.testing.assert_allclose(ends, [0, 1], atol=1e-6)


@pytest.mark.parametrize('shift', [0.05, 0.1, 0.15, 0.45, 7.0])
def test_a_shift_maps_the_ends_to_themselves_exactly(shift):
  end = processes.shifted(jnp.float32(1), process=processes.linear, shift=shift)
  assert end == (0, 1), f'noise is {end}'


def test_the_inverse_is_differentiable_in_the_process_too(x64):
  def time(shift):
    process = Partial(processes.shifted, process=processes.linear, shift=shift)
    return processes.time_of_logsnr(process, 0.5)
  # shift t/(1 - t) = exp(-1/4), so t = r/(1 + r) with r = exp(-1/4)/shift.
  r = np.exp(-0.25) / 3
  np.testing.assert_allclose(jax.grad(time)(3.0), -r / 3 / (1 + r) ** 2, rtol=1e-6)


def test_shift_lowers_the_log_snr_of_the_linear_process_by_twice_its_logarithm(x64):
  t = rows.times('linear', 33, 'float64')
  process = Partial(processes.shifted, process=processes.linear, shift=3.0)
  fall = processes.logsnr(processes.linear, t) - processes.logsnr(process, t)
  np.testing.assert_allclose(fall, 2 * np.log(3), rtol=1e-10)


def test_processes_are_jit_arguments_and_a_new_number_is_no_new_trace():
  traces = []
  @jax.jit
  def alpha(process):
    traces.append(1)
    return process(jnp.float32(0.5)).x
  for beta_max in (20.0, 10.0):
    alpha(Partial(processes.variance_preserving, beta_min=0.1, beta_max=beta_max))
  assert len(traces) == 1, 'changing a number retraced'
  by_number = jax.grad(alpha)(Partial(processes.variance_preserving, beta_min=0.1, beta_max=20.0))
  # d alpha/d beta_max = -t^2/4 alpha.
  expected = -0.25 / 4 * np.exp(-0.25 * 19.9 / 4 - 0.025)
  np.testing.assert_allclose(by_number.keywords['beta_max'], expected, rtol=1e-5)
