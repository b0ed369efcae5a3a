"""Diffusion and flow matching are one thing: the equalities, step by step and after fifty steps."""

import itertools

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np
import pytest

from eqflow import fields, grids, oracles, outputs, processes, samplers
from tests import rows
from tests.laws.solvers import field

COSINE, LINEAR = processes.cosine, processes.linear
Z = np.random.RandomState(0).randn(64, 3)
MEANS = np.array([[-1.0, 0.5, 0.0], [0.8, -0.3, 0.4]])
GRID = np.linspace(0.96, 0.04, 51)


def _mixture(process, output):
  return Partial(oracles.mixture, process=process, output=output, means=MEANS,
                 stds=np.array([0.3, 0.25]), weights=np.array([0.4, 0.6]))


def _agree(found, expected, bound, what):
  error = abs(np.asarray(found) - expected).max() / abs(expected).max()
  assert error <= bound, f'{what}: {error:.2e} of the largest entry'


def _agree_on_the_way(solver, expected, what):
  """The states of `solver` on GRID are the expected ones, after one step and after fifty."""
  path = np.asarray(samplers.sample_path(solver, field, Z, GRID))
  for steps, bound in ((1, 2e-15), (50, 1e-13)):
    _agree(path[steps], expected[steps], bound, f'{what}, step {steps}')


# c and eta: with z~ = z/c, ddim is Euler's step dz~ = y deta for a network that predicts the row.
ROWS = {
    'x': lambda alpha, sigma: (sigma, alpha / sigma),
    'eps': lambda alpha, sigma: (alpha, sigma / alpha),
    'displacement': lambda alpha, sigma: (alpha + sigma, sigma / (alpha + sigma)),
}


# The pairs that are not here meet each row and each process again.
FEW = [('x', 'linear'), ('eps', 'cosine'), ('displacement', 'variance_preserving')]


@pytest.mark.parametrize('name,process', [
    pytest.param(*pair, marks=[pytest.mark.long] * (pair not in FEW))
    for pair in itertools.product(ROWS, ('linear', 'cosine', 'variance_preserving'))])
def test_ddim_is_eulers_step_in_each_outputs_own_time(name, process, x64):
  process, out = rows.PROCESSES[process], rows.OUTPUTS[name]
  states = [Z]
  for t, s in zip(GRID, GRID[1:]):
    (c_t, eta_t), (c_s, eta_s) = (ROWS[name](*map(float, process(jnp.float64(a)))) for a in (t, s))
    y = np.asarray(field(states[-1], jnp.full(64, t)))
    states.append(c_s * (states[-1] / c_t + y * (eta_s - eta_t)))
  _agree_on_the_way(samplers.ddim(process, out), states, f'ddim against Euler in the time of {name}')
  for along in (out, outputs.v):
    _agree_on_the_way(samplers.euler(process, out, along=along), states, f'euler along {name}')


@pytest.mark.parametrize('name', ['cosine', 'variance_preserving', 'linear'])
def test_ddim_rotates_the_state_by_v(name, x64):
  # z_s/n_s = cos(phi_s - phi_t) z_t/n_t + sin(phi_s - phi_t) v, with v of the normalized process.
  process = rows.PROCESSES[name]
  polar = lambda t: (lambda state: (np.hypot(*state), np.arctan2(state[1], state[0])))(
      tuple(map(float, process(jnp.float64(t)))))
  states = [Z]
  for t, s in zip(GRID, GRID[1:]):
    (n_t, phi_t), (n_s, phi_s) = polar(t), polar(s)
    z, v = states[-1], np.asarray(field(states[-1], jnp.full(64, t))) / n_t
    states.append(n_s * (np.cos(phi_s - phi_t) * z / n_t + np.sin(phi_s - phi_t) * v))
  _agree_on_the_way(samplers.ddim(process, outputs.v), states, 'the rotation')


def test_heun_depends_on_the_vector_but_its_limit_does_not(x64):
  def end(along, n):
    # Repeated at the start, where a step of length zero does nothing: one compilation serves both.
    grid = np.append(np.full(200 - n, 0.96), np.linspace(0.96, 0.04, n + 1))
    return np.asarray(samplers.sample(samplers.heun(COSINE, outputs.v, along=along),
                                      _mixture(COSINE, outputs.v), Z, grid))
  ends = [[end(along, n) for along in (None, outputs.x, outputs.eps, outputs.displacement, outputs.v)]
          for n in (10, 200)]
  spread = [max(float(abs(a - b).max()) for a in some for b in some) for some in ends]
  assert spread[0] > 1e-2 and spread[1] < spread[0] / 100, f'they differ by {spread}'


def test_contributions_of_each_prediction():
  # v-prediction on the cosine process, 100 uniform steps: each step multiplies by cos(pi/200).
  grid = grids.uniform(100)
  h = samplers.contributions(samplers.ddim(COSINE, outputs.v), grid)[:-1]
  # The prediction at t = 1 is rotated by all 99 steps that follow.
  expected = np.sin(np.pi / 200) * np.cos(np.pi / 200) ** np.arange(99, -1, -1)
  np.testing.assert_allclose(h, -expected, atol=1e-12)
  assert abs(-h.sum() - 1.56118) < 1e-5


def test_contributions_of_each_prediction_at_churn_one_half():
  grid = grids.uniform(100)
  h = samplers.contributions(samplers.ddim(COSINE, outputs.v, churn=0.5), grid)[:-1]
  assert (h < 0).all() and abs(-h.sum() - 1.93027) < 1e-5
  largest = np.argmin(h)
  assert abs(-h[largest] - 0.029642) < 1e-5 and abs(grid[largest] - 0.13) < 1e-9
  assert abs(-h[0] - 0.000247) < 1e-5


@pytest.mark.parametrize('make', [
    samplers.heun, samplers.dpmpp_3m, samplers.unipc, samplers.adams_bashforth,
    *(pytest.param(make, marks=pytest.mark.long) for make in (
        samplers.ddim, lambda p, o: samplers.heun(p, o, along=outputs.displacement),
        samplers.dpmpp_2m))])
def test_a_rising_grid_inverts_a_sample(make, x64):
  # To noise and back makes twice the solver's error.
  grid, predict = np.linspace(0.02, 0.98, 201), _mixture(LINEAR, outputs.u)
  solver = make(LINEAR, outputs.u)
  x = np.asarray(jax.jit(_mixture(LINEAR, outputs.x))(Z, np.full(64, 0.02)))
  noise = samplers.sample(solver, predict, x, grid)
  back = samplers.sample(solver, predict, noise, grid[::-1])
  error = float(abs(back - x).max())
  assert 1e-9 < error < (0.2 if make is samplers.ddim else 0.01), f'there and back: {error:.2g}'


def test_sampling_starts_from_a_partly_noised_input(x64):
  # A record noised to t and denoised is a sample of the posterior: its mean is E[x | z].
  n, t = 20_000, 0.5
  z = (1 - t) * MEANS[0] + t * np.random.RandomState(1).randn(n, 3)
  predict, keys = _mixture(LINEAR, outputs.u), jax.random.split(jax.random.key(0), n)
  x = np.asarray(samplers.sample(samplers.ancestral(LINEAR, outputs.u), predict, z,
                                 np.linspace(t, 0, 65), keys))
  expected = np.asarray(jax.jit(_mixture(LINEAR, outputs.x))(z, np.full(n, t)))
  error = abs(x - expected).mean(axis=0)
  close = abs(x.mean(axis=0) - expected.mean(axis=0)).max()
  assert close < 0.01 < error.min(), f'the mean is off by {close:.3f}'


@pytest.mark.parametrize('a,b,output', [
    ('edm', 'linear', 'edm'), ('discrete', 'cosine', 'v'),
    *(pytest.param(*row, marks=pytest.mark.long) for row in [
        ('cosine', 'linear', 'v'), ('linear', 'cosine', 'u')])])
def test_a_network_trained_on_one_process_is_sampled_on_another(a, b, output, x64):
  trained, other, out = rows.PROCESSES[a], rows.PROCESSES[b], rows.OUTPUTS[output]
  transport = processes.transport(trained, other, high=100.0 if a == 'edm' else 1.0)
  predict = fields.transported(_mixture(trained, out), transport)
  moved = Partial(outputs.transported, output=out, process_a=trained, time=transport.time)
  grid = np.linspace(0.98, 0.02, 9)
  found = samplers.sample(samplers.dpmpp_2m(other, moved), predict, Z, grid)
  expected = samplers.sample(samplers.dpmpp_2m(other, outputs.v), _mixture(other, outputs.v), Z, grid)
  _agree(found, expected, 1e-9, f'{a} on {b}')


@pytest.mark.parametrize('make', [
    samplers.dpmpp_3m, samplers.unipc,
    *(pytest.param(make, marks=pytest.mark.long) for make in (samplers.ddim, samplers.dpmpp_2m))])
def test_samples_agree_on_two_processes_with_the_same_log_snr(make, x64):
  # 2M and 3M depend only on the log-SNR: samples of two processes differ by the scale alone.
  ends = []
  for process in (LINEAR, COSINE):
    grid = grids.logsnr(20, process=process, start=-7, end=7)
    start, end = (np.hypot(*map(float, process(jnp.float64(t)))) for t in (grid[0], grid[-1]))
    x = samplers.sample(make(process, outputs.v), _mixture(process, outputs.v), start * Z, grid)
    ends.append(np.asarray(x) / end)
  _agree(*ends, 1e-11, make.__name__)


def test_sampling_eps_under_zero_terminal_snr_is_rejected():
  process = rows.PROCESSES['discrete']
  # On any grid: starting later does not help a network that could not be trained at t = 1.
  for make, grid in ((samplers.ddim, grids.trailing(10)), (samplers.ddim, grids.leading(10)),
                     (samplers.dpmpp_2m, grids.leading(10))):
    with pytest.raises(ValueError, match="'eps' is blind at t=1, .* pure noise: train 'v'"):
      samplers.sample(make(process, outputs.eps), field, Z, grid)
  # The vector that a solver steps along is not predicted by a network.
  samplers.heun(process, outputs.v, along=outputs.eps).check(grids.leading(10))
  end = samplers.sample(samplers.ddim(process, outputs.v), field, Z, grids.trailing(10))
  assert jnp.isfinite(end).all()


@pytest.mark.parametrize('grid,message', [
    ([1.0, 0.5, 0.7], 'times fall from 1 to 0.5 and rise from 0.5 to 0.7'),
    ([1.2, 0.5, 0.0], 'at t=1.2 is not a mix of data and noise'),
    ([1.0, 0.5, -0.1], 'at t=-0.1 is not a mix'), ([1.0, np.nan, 0.0], 'finite times')])
@pytest.mark.parametrize('name', ['linear', 'cosine', 'variance_preserving', 'sub_vp', 'discrete'])
def test_a_grid_that_turns_back_or_leaves_the_process_is_rejected(grid, message, name):
  solver = samplers.dpmpp_2m(rows.PROCESSES[name], outputs.v)
  with pytest.raises(ValueError, match=message):
    samplers.sample(solver, field, Z, np.array(grid))


def test_a_table_with_nan_is_rejected():
  broken = Partial(processes.discrete, angles=np.array([0.0, 0.5, np.nan, 1.5]))
  # The last two grids never read the NaN.
  for make, grid in ((samplers.ddim, grids.uniform(4)), (samplers.ddim, np.array([1.0, 0.2, 0.0])),
                     (samplers.adaptive, np.array([1.0, 0.0]))):
    with pytest.raises(ValueError, match=r"'discrete' .* shape \(4,\) .* not finite at 2: "):
      samplers.sample(make(broken, outputs.v), field, Z, grid)
