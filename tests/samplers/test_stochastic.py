"""Stochastic solvers: their bias on Gaussian data, propagated exactly, and what they equal."""

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np
import pytest

from eqflow import arrays, grids, oracles, outputs, processes, samplers
from eqflow.interop import conventions
from eqflow.samplers import diffusions
from tests import rows

COSINE, LINEAR = processes.cosine, processes.linear
MEAN, STD = 0.7, 0.4
KEYS = jax.random.split(jax.random.key(0), 64)


# Mean and covariance of Gaussian data: in one dimension, and correlated in two.
LINE = np.array([MEAN]), np.array([[STD**2]])
PLANE = np.array([MEAN, -0.4]), np.array([[0.16, 0.09], [0.09, 0.25]])


def _gaussian(process, output, data=LINE):
  mean, cov = data
  return Partial(oracles.gaussian, process=process, output=output, mean=jnp.asarray(mean),
                 cov=jnp.asarray(cov))


@pytest.fixture
def given_noise(monkeypatch):
  """{'noise': array}: the noise of the next step, for any keys."""
  given = {}
  monkeypatch.setattr(arrays, 'noise_like', lambda keys, z: given['noise'])
  return given


def _exact(process, t, data):
  (mean, cov), (alpha, sigma) = data, map(float, process(jnp.float64(t)))
  return alpha * mean, alpha**2 * cov + sigma**2 * np.eye(len(mean))


# (process, number of steps) -> solver.
NOISY = {
    'ddim churn 0.3': lambda p, n: samplers.ddim(p, outputs.v, churn=0.3),
    'ddim churn 0.5': lambda p, n: samplers.ddim(p, outputs.v, churn=0.5),
    'ddim eta 0.5': lambda p, n: samplers.ddim(p, outputs.v, eta=0.5),
    'ancestral': lambda p, n: samplers.ancestral(p, outputs.v),
    'ancestral, forward variance': lambda p, n: samplers.ancestral(p, outputs.v, variance=1.0),
    'edm': lambda p, n: samplers.edm(p, outputs.v, num_steps=n, churn=4.0),
    'dpmpp_2m churn 0.5': lambda p, n: samplers.dpmpp_2m(p, outputs.v, churn=0.5),
    'dpmpp_3m churn 0.5': lambda p, n: samplers.dpmpp_3m(p, outputs.v, churn=0.5),
    **{f'sde {name}': lambda p, n, name=name: samplers.sde(
        p, outputs.v, diffusion=Partial(getattr(diffusions, name), norm=0.7))
       for name in ('constant', 'sigma', 'linear', 'decreasing', 'increasing_decreasing', 'sbdm')},
}
# Alike enough to another row for the long tests alone; a new row runs in all.
ALIKE = ('ddim churn 0.3', 'ddim churn 0.5', 'ancestral, forward variance', 'dpmpp_2m churn 0.5',
         'dpmpp_3m churn 0.5', 'sde constant', 'sde linear', 'sde decreasing',
         'sde increasing_decreasing', 'sde sbdm')


def _affine(process, data, given_noise):
  """A compiled function of (z, noises, solver, grid): the last state, its slopes in z and noises."""
  predict = _gaussian(process, outputs.v, data)
  at = lambda z, t: predict(z, jnp.full(1, t))

  def end(z, noises, solver, grid):
    def step(carry, interval):
      t, s, given_noise['noise'] = interval
      return jax.lax.cond(t != s, lambda: solver.step(at, *carry, t, s, KEYS[:1]), lambda: carry), None
    carry, _ = jax.lax.scan(step, (z[None], solver.init(z[None])), (grid[:-1], grid[1:], noises))
    return carry[0][0]

  return jax.jit(lambda *given: (end(*given), jax.jacrev(end, argnums=(0, 1))(*given)))


def weak_order(name, process, given_noise, data=LINE):
  """(the order of the largest bias of mean and covariance, the biases) at 128, 256 and 512 steps."""
  steps, bias = np.array([128, 256, 512]), []
  affine = _affine(process, data, given_noise)
  (mean, cov), exact = (_exact(process, t, data) for t in (0.95, 0.05))
  noises = np.zeros((steps[-1], 1, len(mean)))
  for n in steps:
    # Repeated at the start, where a step is skipped: one compilation serves all.
    grid = np.append(np.full(steps[-1] - n, 0.95), np.linspace(0.95, 0.05, n + 1))
    solver = NOISY[name](process, int(n))
    value, (by_z, by_noise) = jax.device_get(affine(mean, noises, solver, grid))
    by_noise = by_noise.reshape(len(mean), -1)
    # Checked to be affine: a second evaluation elsewhere agrees with the slopes.
    elsewhere, _ = affine(mean + 1.0, noises + 0.5, solver, grid)
    np.testing.assert_allclose(elsewhere, value + by_z.sum(1) + 0.5 * by_noise.sum(1), rtol=1e-8)
    found = value, by_z @ cov @ by_z.T + by_noise @ by_noise.T
    bias.append(float(max(abs(a - b).max() for a, b in zip(found, exact))))
  return -np.polyfit(np.log(steps), np.log(bias), 1)[0], bias


@pytest.mark.parametrize('name,process', [
    pytest.param(name, process, marks=[pytest.mark.long] * (process == 'cosine' or name in ALIKE))
    for name in NOISY for process in ('linear', 'cosine')])
def test_bias_on_gaussian_data_falls_with_the_number_of_steps(name, process, x64, given_noise):
  order, bias = weak_order(name, rows.PROCESSES[process], given_noise)
  assert order >= 0.9 and bias[-1] < 0.02, f'{name}: weak order {order:.2f}, biases {bias}'


@pytest.mark.long
@pytest.mark.parametrize('name', ['ddim churn 0.3', 'ancestral', 'edm', 'dpmpp_2m churn 0.5',
                                  'sde sigma'])
def test_bias_on_correlated_gaussian_data_falls_with_the_number_of_steps(name, x64, given_noise):
  order, bias = weak_order(name, COSINE, given_noise, PLANE)
  assert order >= 0.9 and bias[-1] < 0.02, f'{name}: weak order {order:.2f}, biases {bias}'


@pytest.mark.parametrize('name,n,steps', [('sde sigma', 10_000, 128)] + [
    pytest.param(name, 100_000, 512, marks=pytest.mark.long) for name in NOISY])
def test_samples_of_a_mixture_have_its_moments(name, n, steps):
  # Of 100,000 samples the standard error of a mean is 1/316 of a standard deviation.
  means, stds, weights = np.array([-1.0, 0.8]), np.array([0.3, 0.25]), np.array([0.4, 0.6])
  predict = Partial(oracles.mixture, process=COSINE, output=outputs.v, means=means[:, None],
                    stds=stds, weights=weights)
  keys = jax.random.split(jax.random.key(1), n)
  z, start = arrays.noise_like(jax.random.split(jax.random.key(2), n), jnp.zeros((n, 1))), 0.999
  if name == 'sde sbdm':
    # At 0.999 its w is 700, where steps of 1/512 are not stable; at 0.95 the state still contains data.
    start, rng = 0.95, np.random.default_rng(3)
    k = rng.choice(2, size=n, p=weights)
    data = means[k] + stds[k] * rng.normal(size=n)
    z = np.float32(COSINE(start).x * data[:, None] + COSINE(start).eps * z)
  x = np.asarray(samplers.sample(NOISY[name](COSINE, steps), predict, z,
                                 grids.uniform(steps, start=start), keys), np.float64)[:, 0]
  center = (weights * means).sum()
  square = (weights * (stds**2 + means**2)).sum()
  fourth = (weights * (means**4 + 6 * means**2 * stds**2 + 3 * stds**4)).sum()
  errors = [abs(x.mean() - center) / np.sqrt((square - center**2) / n),
            abs((x**2).mean() - square) / np.sqrt((fourth - square**2) / n)]
  assert max(errors) < 4.5, f'{name}: mean and second moment are {errors} standard errors off'


def test_eta_and_churn_agree_only_at_their_ends(x64):
  z, grid, keys = jnp.ones((64, 1)), np.linspace(0.9, 0.5, 5), KEYS
  predict = lambda z, t: jnp.tanh(z) + t[:, None]
  run = lambda **how: samplers.sample(samplers.ddim(COSINE, outputs.v, **how), predict, z, grid, keys)
  np.testing.assert_allclose(run(eta=0.0), run(churn=0.0), rtol=1e-14)
  np.testing.assert_allclose(run(eta=1.0), run(churn=0.5), rtol=1e-12)
  ddpm = samplers.sample(samplers.ancestral(COSINE, outputs.v), predict, z, grid, keys)
  np.testing.assert_allclose(run(churn=0.5), ddpm, rtol=1e-12)
  assert abs(run(eta=0.5) - run(churn=0.25)).max() > 1e-3


def test_the_gradient_in_churn_is_finite_where_a_time_repeats(x64):
  z = jnp.ones((64, 1))
  end = lambda churn: samplers.sample(samplers.ddim(COSINE, outputs.v, churn=churn),
                                      lambda z, t: jnp.tanh(z), z, np.array([0.9, 0.5, 0.5, 0.0]),
                                      KEYS).sum()
  np.testing.assert_allclose(jax.grad(end)(0.3), (end(0.3 + 1e-6) - end(0.3 - 1e-6)) / 2e-6, rtol=1e-5)


def test_churn_1_replaces_all_noise_at_each_step(x64):
  z, keys = jnp.full((64, 1), 5.0), KEYS
  found = samplers.sample(samplers.ddim(COSINE, outputs.x, churn=1.0), lambda z, t: 0.25 + 0 * z, z,
                          np.array([0.9, 0.6]), keys)
  state = COSINE(jnp.float64(0.6))
  fresh = arrays.noise_like(arrays.fold_number(keys, 0), z)
  np.testing.assert_allclose(found, state.x * 0.25 + state.eps * fresh, rtol=1e-12)
  for grid in (grids.uniform(4), np.array([1.0, 1.0, 0.5, 0.5, 0.0, 0.0])):
    end = samplers.sample(samplers.ddim(COSINE, outputs.v, churn=1.0), lambda z, t: z, z, grid, keys)
    assert jnp.isfinite(end).all()


@pytest.mark.parametrize('variance', [0.0, 0.3, 1.0])
def test_the_variance_of_ddpms_step_interpolates_the_posteriors_and_the_forward_steps(
    variance, x64, given_noise):
  # beta~ = (1 - abar_s)/(1 - abar_t) beta and beta = 1 - abar_t/abar_s, interpolated in logarithm.
  t, s = 0.6, 0.5
  abar_t, abar_s = (float(COSINE(at).x) ** 2 for at in (t, s))
  beta = 1 - abar_t / abar_s
  expected = beta**variance * ((1 - abar_s) / (1 - abar_t) * beta) ** (1 - variance)
  step = samplers.ancestral(COSINE, outputs.v, variance=variance).step
  def move(noise):
    given_noise['noise'] = jnp.full((1, 1), noise)
    return step(lambda z, t: z, jnp.ones((1, 1)), (), t, s, KEYS[:1])[0]
  spread = move(1.0) - move(0.0)
  np.testing.assert_allclose(spread**2, expected, rtol=1e-12)


CHURN = dict(churn=40.0, sigma_min=0.05, sigma_max=50.0, noise_scale=1.003)


@pytest.mark.parametrize('churn', [0.0, 40.0])
def test_edms_sampler_is_algorithm_2_of_its_paper(churn, x64):
  # Restated from 2206.00364 with sigma(t) = t, s(t) = 1: 32 steps, 63 evaluations.
  calls = []
  def denoiser(z, sigma):
    calls.append(sigma)
    near, far = ((z - c) ** 2 / (2 * (0.3**2 + sigma**2)) for c in (-1.0, 0.8))
    share = 1 / (1 + np.exp(near - far))
    means = [c + 0.3**2 / (0.3**2 + sigma**2) * (z - c) for c in (-1.0, 0.8)]
    return share * means[0] + (1 - share) * means[1]
  n, grid = 32, grids.karras(32)
  z = np.array([[60.0], [-100.0], [13.0]])
  keys = jax.random.split(jax.random.key(3), 3)
  x = z
  for i, (t, s) in enumerate(zip(grid[:-1], grid[1:])):
    gamma = min(churn / n, np.sqrt(2) - 1) if 0.05 <= t <= 50 else 0.0
    noise = 1.003 * np.asarray(arrays.noise_like(arrays.fold_number(keys, i), jnp.asarray(z)))
    t_hat = t + gamma * t
    x_hat = x + np.sqrt(t_hat**2 - t**2) * noise
    d = (x_hat - denoiser(x_hat, t_hat)) / t_hat
    x = x_hat + (s - t_hat) * d
    if s != 0:
      d_next = (x - denoiser(x, s)) / s
      x = x_hat + (s - t_hat) * (d / 2 + d_next / 2)
  assert len(calls) == 63
  predict = Partial(oracles.mixture, process=processes.edm, output=outputs.x,
                    means=np.array([[-1.0], [0.8]]), stds=np.array([0.3, 0.3]),
                    weights=np.array([0.5, 0.5]))
  solver = samplers.edm(processes.edm, outputs.x, num_steps=n, **{**CHURN, 'churn': churn})
  found = samplers.sample(solver, predict, jnp.asarray(z), grid, keys)
  np.testing.assert_allclose(found, x, rtol=1e-10)


GAMMAS = 2 * np.log(0.0019), 2 * np.log(40.0)
# (process, alpha and t at EDM's sigma, the last sigma): VDM's process still has noise at t = 0.
ELSEWHERE = {
    'linear': (LINEAR, lambda sigma: 1 / (1 + sigma), lambda sigma: sigma / (1 + sigma), 0.0),
    'cosine': (COSINE, lambda sigma: 1 / np.hypot(1, sigma),
               lambda sigma: 2 / np.pi * np.arctan(sigma), 0.0),
    'vdm': (conventions.vdm(outputs.v, gamma_min=GAMMAS[0], gamma_max=GAMMAS[1]).process,
            lambda sigma: 1 / np.hypot(1, sigma),
            lambda sigma: (2 * np.log(sigma) - GAMMAS[0]) / (GAMMAS[1] - GAMMAS[0]), 0.00195),
}


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.long] * (name == 'cosine')) for name in ELSEWHERE])
def test_edms_sampler_is_the_same_on_every_process(name, x64):
  # z is alpha times EDM's, where the noise-to-signal ratio is EDM's sigma; VDM's 0.002 is at t = 0.005.
  process, alpha, time, last = ELSEWHERE[name]
  grid = np.append(grids.karras(12, sigma_max=20.0)[:-1], last)
  z = 20.0 * jax.random.normal(jax.random.key(0), (64, 1))
  make = lambda p: samplers.edm(p, outputs.v, num_steps=12, **{**CHURN, 'sigma_min': 0.0})
  own = samplers.sample(make(processes.edm), _gaussian(processes.edm, outputs.v), z, grid, KEYS)
  found = samplers.sample(make(process), _gaussian(process, outputs.v), alpha(grid[0]) * z,
                          time(grid), KEYS)
  np.testing.assert_allclose(found, alpha(last) * own, rtol=1e-8)


@pytest.mark.parametrize('last', ['last_mean', 'last_tweedie', 'last_euler'])
def test_the_last_step_of_an_sde_adds_no_noise(last, x64):
  t, z, y = 0.2, jnp.array([[0.3], [-0.5]]), jnp.array([[0.7], [0.1]])
  solver = samplers.sde(LINEAR, outputs.x, diffusion=Partial(diffusions.constant, norm=0.5),
                        last=getattr(samplers, last))
  found, _ = solver.step(lambda z, t: y, z, (), t, 0.0, KEYS[:2])
  # On z = (1 - t) x + t eps: u = eps - x, score = -eps/t.
  eps = (z - (1 - t) * y) / t
  flow = z - t * (eps - y)
  expected = {'last_mean': flow + t * 0.5 * (-eps / t), 'last_tweedie': y, 'last_euler': flow}[last]
  np.testing.assert_allclose(found, expected, rtol=1e-12)


DIFFUSIONS = {
    'constant': lambda t: 0.7 + 0 * t, 'sigma': lambda t: 0.7 * t, 'linear': lambda t: 0.7 * t,
    # With SiT's time 1 - t: (norm cos(pi (1 - t)) + 1)^2/4 and norm sin^2(pi (1 - t)).
    'decreasing': lambda t: (0.7 * np.cos(np.pi * (1 - t)) + 1) ** 2 / 4,
    'increasing_decreasing': lambda t: 0.7 * np.sin(np.pi * (1 - t)) ** 2,
    # sigma sigma' - sigma^2 alpha'/alpha on the linear process.
    'sbdm': lambda t: 0.7 * (t + t**2 / (1 - t)),
}


@pytest.mark.parametrize('name', DIFFUSIONS)
def test_diffusion_coefficients_match_sit(name, x64):
  t = jnp.linspace(0.05, 0.95, 19)
  found = getattr(diffusions, name)(LINEAR, t, norm=0.7)
  np.testing.assert_allclose(found, DIFFUSIONS[name](t), rtol=1e-12)


def test_an_infinite_diffusion_is_rejected():
  solver = samplers.sde(LINEAR, outputs.u, diffusion=diffusions.sbdm)
  with pytest.raises(ValueError, match="diffusion 'sbdm' is not finite at t=1"):
    samplers.sample(solver, lambda z, t: z, jnp.ones((2, 1)), grids.uniform(4), KEYS[:2])


def test_a_negative_diffusion_is_rejected():
  solver = samplers.sde(LINEAR, outputs.u, diffusion=Partial(diffusions.sigma, norm=-0.5))
  with pytest.raises(ValueError, match="diffusion 'sigma' is negative at t=1: give norm >= 0"):
    solver.check(grids.uniform(4))


@pytest.mark.parametrize('name', [name for name in NOISY if name.startswith('sde')])
@pytest.mark.parametrize('process', [LINEAR, COSINE])
def test_every_diffusion_of_the_library_is_accepted(name, process):
  NOISY[name](process, 50).check(grids.uniform(50, start=0.999))


@pytest.mark.parametrize('num_steps', [3, 30])
def test_edms_num_steps_must_be_the_grids(num_steps):
  with pytest.raises(ValueError, match=f'num_steps={num_steps} of edm .* 10 steps of the grid: use '
                     'num_steps=10$'):
    samplers.edm(LINEAR, outputs.v, num_steps=num_steps, churn=4.0).check(grids.uniform(10, start=0.9))
  for grid in (grids.uniform(10, start=0.9), [0.9, *grids.uniform(9, start=0.9)]):
    samplers.edm(LINEAR, outputs.v, num_steps=10, churn=4.0).check(np.asarray(grid))


def test_a_blind_vector_to_step_along_is_rejected():
  with pytest.raises(ValueError, match="edm steps along 'eps'.* at t=1: start the grid at "
                     't<=0.999999 or use heun'):
    samplers.edm(LINEAR, outputs.v, num_steps=4, churn=1.0).check(grids.uniform(4))
  with pytest.raises(ValueError, match="heun steps along 'eps'.* at t=1: .* another `along`"):
    samplers.heun(LINEAR, outputs.v, along=outputs.eps).check(grids.uniform(4))


@pytest.mark.parametrize('make', [
    lambda: samplers.ddim(LINEAR, outputs.u, churn=0.5), lambda: samplers.sde(LINEAR, outputs.u),
    lambda: samplers.edm(LINEAR, outputs.u, num_steps=4, churn=1.0),
    lambda: samplers.dpmpp_2m(LINEAR, outputs.u, churn=0.5)])
def test_stochastic_solvers_need_keys_and_do_not_invert(make):
  z = jnp.ones((2, 1))
  with pytest.raises(ValueError, match='is stochastic: pass keys'):
    samplers.sample(make(), lambda z, t: z, z, grids.uniform(4, start=0.9))
  with pytest.raises(ValueError, match='is stochastic.* the times rise: invert with .* ddim or heun'):
    samplers.sample(make(), lambda z, t: z, z, grids.uniform(4, start=0.1, end=0.9), KEYS[:2])


TWO = np.array([0.1, 0.2])


def test_numbers_out_of_range_are_rejected():
  for make, message in (
      (lambda: samplers.ancestral(LINEAR, outputs.u, variance=1.5), 'variance=1.5: '),
      (lambda: samplers.edm(LINEAR, outputs.u, num_steps=4, churn=float('nan')), 'churn=nan: '),
      (lambda: samplers.edm(LINEAR, outputs.u, num_steps=4, churn=1.0, sigma_min=2.0, sigma_max=1.0),
       'sigma_min=2.0 exceeds sigma_max=1.0'),
      (lambda: samplers.ddim(LINEAR, outputs.u, churn=TWO), r'churn has shape \(2,\): '),
      (lambda: samplers.ddim(LINEAR, outputs.u, eta=TWO), r'eta has shape \(2,\): '),
      (lambda: samplers.ancestral(LINEAR, outputs.u, variance=TWO), r'variance has shape \(2,\): '),
      (lambda: samplers.dpmpp_2m(LINEAR, outputs.u, churn=TWO), r'churn has shape \(2,\): '),
      (lambda: samplers.edm(LINEAR, outputs.u, num_steps=4, churn=TWO), r'churn has shape \(2,\): '),
      (lambda: samplers.dpmpp_2m(LINEAR, outputs.u, num_steps=0), 'num_steps=0: '),
      (lambda: samplers.adaptive(LINEAR, outputs.u, rtol=0.0, atol=0.0), 'rtol=0.0, atol=0.0')):
    with pytest.raises(ValueError, match=message):
      make()


@pytest.mark.parametrize('number', [-0.1, 1.5])
def test_churn_and_eta_lie_in_0_to_1(number):
  with pytest.raises(ValueError, match=f'churn={number}: .* 0 to 1'):
    samplers.ddim(LINEAR, outputs.u, churn=number)
  with pytest.raises(ValueError, match=f'eta={number}: .* 0 to 1'):
    samplers.ddim(LINEAR, outputs.u, eta=number)
  with pytest.raises(ValueError, match='churn=0.5 and eta=0.5 '):
    samplers.ddim(LINEAR, outputs.u, eta=0.5, churn=0.5)
