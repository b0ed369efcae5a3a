"""Processes: their ends, their velocities and the inverse of their log-SNR."""

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np
import pytest

from eqflow import processes
from eqflow.mix import Mix
from eqflow.processes import sde, tables
from eqflow.samplers import diffusions
from tests import rows

UNIT = [name for name in rows.PROCESSES if name != 'edm']


@pytest.mark.parametrize('name', UNIT)
def test_time_runs_from_data_to_noise(name):
  start, end = (rows.PROCESSES[name](jnp.float32(t)) for t in (0, 1))
  assert start.eps == 0 and start.x > 0.999, f'{name} is not data at t = 0'
  assert end.x < 0.007 and end.eps > 0.999, f'{name} is not noise at t = 1'


def test_cosine_is_exactly_noise_at_one_and_its_log_snr_is_not_nan():
  assert processes.cosine(jnp.float32(1)).x == 0
  assert processes.logsnr(processes.cosine, jnp.float32(1)) == -jnp.inf


@pytest.mark.parametrize('name', ['cosine', 'variance_preserving'])
def test_variance_is_preserved(name, x64):
  state = jax.jit(rows.PROCESSES[name])(rows.times(name, 33, 'float64'))
  np.testing.assert_allclose(np.hypot(*state), 1, rtol=1e-14)


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
  h = 1e-4 * np.asarray(t)
  rate, ahead, behind = jax.jit(
      lambda t: (processes.rate(process, t), process(t + h), process(t - h)))(t)
  for found, a, b in zip(rate, ahead, behind):
    np.testing.assert_allclose(found, (np.asarray(a) - b) / (2 * h), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('name', rows.PROCESSES)
def test_log_snr_falls_and_its_inverse_finds_the_time(name, x64):
  process, t = rows.PROCESSES[name], rows.times(name, 33, 'float64')
  inverse = Partial(processes.time_of_logsnr, process, high=100.0 if name == 'edm' else 1.0)

  @jax.jit
  def there_and_back(t):
    value = processes.logsnr(process, t)
    slope = jax.vmap(jax.grad(inverse))(value)
    return value, inverse(value), slope, processes.logsnr_rate(process, t)

  value, found, slope, rate = there_and_back(t)
  assert (np.diff(value) < 0).all()
  np.testing.assert_allclose(found, t, rtol=1e-9)
  np.testing.assert_allclose(slope, 1 / np.asarray(rate), rtol=1e-6)


def test_the_inverse_of_an_infinite_log_snr_is_the_nearer_end():
  inverse = jax.jit(lambda value: processes.time_of_logsnr(processes.linear, value))
  ends = inverse(np.float32([np.inf, -np.inf]))
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
  np.testing.assert_allclose(jax.jit(jax.grad(time))(3.0), -r / 3 / (1 + r) ** 2, rtol=1e-6)


def test_shift_lowers_the_log_snr_of_the_linear_process_by_twice_its_logarithm(x64):
  t = rows.times('linear', 33, 'float64')
  process = Partial(processes.shifted, process=processes.linear, shift=3.0)
  fall = processes.logsnr(processes.linear, t) - processes.logsnr(process, t)
  np.testing.assert_allclose(fall, 2 * np.log(3), rtol=1e-10)


def test_processes_are_jit_arguments_and_a_new_number_does_not_retrace():
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


@pytest.mark.parametrize('table,terminal', [
    (tables.scaled_linear, 0.0682649), (tables.linear, 0.00635282), (tables.cosine, 4.92825e-5)])
def test_tables_end_at_their_known_values(table, terminal):
  alpha = np.sqrt(table(1000))
  assert abs(alpha[-1] / terminal - 1) < 1e-5, f'sqrt(alpha_bar_T) is {alpha[-1]:.6g}'
  rescaled = np.sqrt(tables.zero_terminal_snr(table(1000)))
  assert rescaled[-1] == 0 and abs(rescaled[0] - alpha[0]) < 1e-15
  # Equal steps of alpha stay equal: the map is affine.
  np.testing.assert_allclose(np.diff(rescaled)[400] / np.diff(rescaled)[10],
                             np.diff(alpha)[400] / np.diff(alpha)[10], rtol=1e-9)


def test_a_table_is_exact_at_its_entries_and_linear_in_angle_between(x64):
  table = tables.zero_terminal_snr(tables.scaled_linear(50))
  process = jax.jit(Partial(processes.discrete, angles=processes.table_angles(table)))
  at_entries = process(np.arange(1, 51) / 50)
  np.testing.assert_allclose(at_entries.x, np.sqrt(table), atol=1e-15)
  np.testing.assert_allclose(at_entries.eps, np.sqrt(1 - table), atol=1e-15)
  assert process(1.0).x == 0 and process(0.0) == (1, 0)
  angle = lambda t: np.arctan2(*process(t)[::-1])
  between = 0.75 * angle(7 / 50) + 0.25 * angle(8 / 50)
  np.testing.assert_allclose(angle(7.25 / 50), between, rtol=1e-13)


def test_pure_noise_is_exact_in_float32():
  angles = processes.table_angles(tables.zero_terminal_snr(tables.cosine()))
  assert processes.discrete(jnp.float32(1), angles=jnp.asarray(angles, jnp.float32)) == (0, 1)


@pytest.mark.parametrize('table,message', [
    (tables.linear()[::-1], r'alphas_cumprod\[0\]=4.03.* is followed by'),
    (np.array([0.9, 0.9]), r'alphas_cumprod\[0\]=0.9 is followed by 0.9'),
    (np.array([0.9, np.nan]), r'alphas_cumprod\[1\]=nan'),
    (np.array([1.2, 0.5]), 'from 1.2 to 0.5'),
    (np.array([0.5, -0.1]), 'from 0.5 to -0.1'),
    (np.array([0.5]), r'shape \(1,\)')])
def test_arrays_that_are_not_tables_are_rejected(table, message):
  with pytest.raises(ValueError, match=message):
    processes.table_angles(table)
  with pytest.raises(ValueError, match=message):
    tables.zero_terminal_snr(table)


def test_betas_outside_0_and_1_are_rejected():
  with pytest.raises(ValueError, match='betas from 0.0001 to 1.5 .*beta_max'):
    tables.linear(10, beta_max=1.5)


def test_logsnr_shifted_shifts_the_log_snr_and_keeps_the_norm(x64):
  t = rows.times('linear', 33, 'float64')
  for plain in (processes.linear, rows.PROCESSES['variance_preserving']):
    moved = Partial(processes.logsnr_shifted, process=plain, shift=-1.5)
    fall = processes.logsnr(moved, t) - processes.logsnr(plain, t)
    np.testing.assert_allclose(fall, -1.5, rtol=1e-10)
    np.testing.assert_allclose(np.hypot(*moved(t)), np.hypot(*plain(t)), rtol=1e-14)


def test_sub_vp_has_the_square_of_vps_noise(x64):
  t = rows.times('linear', 33, 'float64')
  less, more = rows.PROCESSES['sub_vp'](t), rows.PROCESSES['variance_preserving'](t)
  np.testing.assert_allclose(less.x, more.x, rtol=1e-15)
  np.testing.assert_allclose(less.eps, more.eps**2, rtol=1e-13)


def test_drift_and_diffusion_of_the_cosine_process_are_known(x64):
  # alpha = cos(pi t/2), so f = -(pi/2) tan(pi t/2) and g^2 = pi tan(pi t/2).
  t = np.linspace(0.1, 0.9, 17)
  tangent = np.tan(np.pi / 2 * t)
  drift, square = jax.jit(lambda t: (
      sde.drift(processes.cosine, t), sde.square_diffusion(processes.cosine, t)))(t)
  np.testing.assert_allclose(drift, -np.pi / 2 * tangent, rtol=1e-12)
  np.testing.assert_allclose(square, np.pi * tangent, rtol=1e-12)


# (process, f, g^2).
DRIFTS = {
    'cosine': (processes.cosine, lambda t: -np.pi / 2 * jnp.tan(np.pi / 2 * t),
               lambda t: np.pi * jnp.tan(np.pi / 2 * t)),
    'linear': (processes.linear, lambda t: -1 / (1 - t), lambda t: 2 * t / (1 - t)),
    'variance_preserving': (rows.PROCESSES['variance_preserving'],
                            lambda t: -(0.1 + 19.9 * t) / 2, lambda t: 0.1 + 19.9 * t),
    'edm': (processes.edm, jnp.zeros_like, lambda t: 2 * t),
    'constants': (lambda t: Mix(jnp.exp(-2.5 * t), jnp.sqrt(-jnp.expm1(-5 * t))), lambda t: -2.5,
                  lambda t: 5.0),
}


@pytest.mark.parametrize('name', DRIFTS)
def test_the_process_of_a_drift_and_a_diffusion_is_the_original_process(name, x64):
  process, f, g2 = DRIFTS[name]
  t = jnp.asarray(np.append(np.linspace(0.0, 0.9, 19), 1 - 10.0 ** -np.arange(2, 7)))
  made = Partial(sde.process, drift=f, square_diffusion=g2)
  for a, b in zip(made(t), process(t)):
    # Near 1, 1 - t itself is known to 1e-10 of it.
    np.testing.assert_allclose(a[:-2], b[:-2], rtol=1e-12)
    np.testing.assert_allclose(a, b, rtol=1e-9)
  for a, b in zip(processes.rate(made, t[2:]), processes.rate(process, t[2:])):
    np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


def test_the_process_is_nan_where_its_drift_is_infinite(x64):
  # cos and sin of 54 degrees; without the factor alpha before the root, sigma would be 1.376.
  made = {name: jax.jit(Partial(sde.process, drift=f, square_diffusion=g2))
          for name, (_, f, g2) in DRIFTS.items()}
  np.testing.assert_allclose(made['cosine'](0.6), (0.587785, 0.809017), atol=1e-6)
  for name in ('cosine', 'linear'):
    for t in (1.0, np.float32(1)):
      assert np.isnan(tuple(made[name](t))).all()
  assert np.isfinite(tuple(made['variance_preserving'](1.0))).all()


def test_sbdms_coefficient_is_half_the_square_of_the_forward_noise_times_eta(x64):
  # w = (eta g)^2/2 with g^2 = pi tan(pi t/2) on the cosine process, and norm = eta^2.
  t = np.linspace(0.1, 0.9, 5)
  w = 0.3**2 * np.pi * np.tan(np.pi / 2 * t) / 2
  found = jax.jit(lambda t: diffusions.sbdm(processes.cosine, t, norm=0.09))(t)
  np.testing.assert_allclose(found, w, rtol=1e-12)


@pytest.mark.parametrize('a,b', [('cosine', 'linear'), ('linear', 'cosine'), ('edm', 'linear'),
                                 ('variance_preserving', 'discrete')])
def test_a_transported_state_is_a_state_of_the_other_process(a, b, x64):
  first, second = rows.PROCESSES[a], rows.PROCESSES[b]
  time, scale = processes.transport(first, second, high=200.0 if a == 'edm' else 1.0)
  there, here, scaled, value = jax.jit(lambda t: (
      first(time(t)), second(t), scale(t), processes.logsnr(second, t)))(rows.times(b, 33, 'float64'))
  seen = np.asarray(value) > -9
  np.testing.assert_allclose(np.stack(there)[:, seen], (scaled * np.stack(here))[:, seen], rtol=1e-7)


def test_transport_reaches_pure_noise_or_is_nan(x64):
  one = jnp.float64(1.0)
  time, scale = processes.transport(processes.linear, processes.cosine)
  assert jax.jit(time)(one) == 1 and jax.jit(scale)(one) == 1
  beyond = processes.transport(rows.PROCESSES['variance_preserving'], processes.linear).time
  assert np.isnan(jax.jit(beyond)(one)), 'a process that keeps some data has no state of pure noise'


@pytest.mark.parametrize('table', [tables.scaled_linear, tables.linear, tables.cosine])
def test_alpha_of_a_table_keeps_its_digits_near_pure_noise(table):
  process, known = processes.table(table()), np.sqrt(table())
  found = jax.jit(lambda process, t: process(t))(process, jnp.float32([0.99, 0.999, 1.0]))
  np.testing.assert_allclose(found.x, known[[989, 998, 999]], rtol=2e-5)
