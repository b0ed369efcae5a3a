"""Conventions of other projects against their published formulas, written here in their notation."""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np
import pytest

from eqflow import arrays, outputs, processes, samplers
from eqflow.interop import conventions
from eqflow.mix import mix
from eqflow.processes import tables
from tests import rows

VP = Partial(processes.variance_preserving, beta_min=0.1, beta_max=20.0)
SCALED_LINEAR = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


# Their schedules: t -> (alpha, d alpha/dt, sigma, d sigma/dt), x_1 the data, x_0 the noise.

def _linear(t):
  return t, 1.0, 1 - t, -1.0


def _gvp(t):
  """SiT's GVPCPlan, flow_matching's CosineScheduler."""
  a = np.pi / 2
  return jnp.sin(a * t), a * jnp.cos(a * t), jnp.cos(a * t), -a * jnp.sin(a * t)


def _sit_vp(t):
  """SiT's VPCPlan; its sigma_min and sigma_max are the betas."""
  low, high = 0.1, 20.0
  log_mean = -0.25 * (1 - t) ** 2 * (high - low) - 0.5 * (1 - t) * low
  d_log_mean = 0.5 * (1 - t) * (high - low) + 0.5 * low
  alpha, sigma = jnp.exp(log_mean), jnp.sqrt(1 - jnp.exp(2 * log_mean))
  return alpha, alpha * d_log_mean, sigma, jnp.exp(2 * log_mean) * 2 * d_log_mean / (-2 * sigma)


def _fm_vp(t):
  """flow_matching's VPScheduler."""
  b, B = 0.1, 20.0
  T, dT = 0.5 * (1 - t) ** 2 * (B - b) + (1 - t) * b, -(1 - t) * (B - b) - b
  sigma = jnp.sqrt(1 - jnp.exp(-T))
  return (jnp.exp(-0.5 * T), -0.5 * dT * jnp.exp(-0.5 * T), sigma,
          0.5 * dT * jnp.exp(-T) / sigma)


def _cubic(t):
  """flow_matching's PolynomialConvexScheduler(3)."""
  return t**3, 3 * t**2, 1 - t**3, -3 * t**2


def _linear_vp(t):
  """flow_matching's LinearVPScheduler."""
  return t, 1.0, (1 - t**2) ** 0.5, -t / (1 - t**2) ** 0.5


def _mit_square(t):
  """A schedule that needs the general alpha and beta of MIT 6.S184."""
  return t**2, 2 * t, jnp.cos(np.pi / 2 * t), -np.pi / 2 * jnp.sin(np.pi / 2 * t)


# Their models: (t, x_1, x_0) -> (state, target of the network).

def _flow(schedule, model):
  def theirs(t, x1, x0):
    alpha, d_alpha, sigma, d_sigma = schedule(t)
    target = {'velocity': lambda: d_alpha * x1 + d_sigma * x0, 'noise': lambda: x0,
              'score': lambda: -x0 / sigma, 'data': lambda: x1}[model]()
    return alpha * x1 + sigma * x0, target
  return theirs


def _eqm(t, x1, x0):
  c = 4 * jnp.minimum(1.0, (1 - t) / (1 - 0.8))
  return t * x1 + (1 - t) * x0, (x1 - x0) * c


def _edm(sigma, y, n):
  return y + sigma * n, y


def _edm_network(c_noise, y, n):
  sigma, sd = jnp.exp(4 * c_noise), 0.5
  c_skip = sd**2 / (sigma**2 + sd**2)
  c_out = sigma * sd / jnp.sqrt(sigma**2 + sd**2)
  c_in = 1 / jnp.sqrt(sd**2 + sigma**2)
  return c_in * (y + sigma * n), (y - c_skip * (y + sigma * n)) / c_out


def _diffusers(prediction_type):
  def theirs(k, x0, noise):
    a = jnp.asarray(SCALED_LINEAR)[jnp.round(k).astype(int)]
    target = {'epsilon': noise, 'sample': x0,
              'v_prediction': jnp.sqrt(a) * noise - jnp.sqrt(1 - a) * x0}[prediction_type]
    return jnp.sqrt(a) * x0 + jnp.sqrt(1 - a) * noise, target
  return theirs


def _diffusers_flow(timestep, x, noise):
  sigma = timestep / 1000
  return (1 - sigma) * x + sigma * noise, noise - x


def _vdm(model):
  def theirs(gamma, x, eps):
    var = 1 / (1 + jnp.exp(-gamma))
    alpha, sigma = jnp.sqrt(1 - var), jnp.sqrt(var)
    return alpha * x + sigma * eps, {'eps': eps, 'x': x, 'v': alpha * eps - sigma * x}[model]
  return theirs


class Case(NamedTuple):
  convention: conventions.Convention
  theirs: Callable[..., Any]
  start: float    # their times, from noisy to clean
  end: float


def _mit_alpha(t):
  return t**2


def _mit_beta(t):
  return jnp.cos(np.pi / 2 * t)


SIT, FM, MIT = conventions.sit, conventions.flow_matching, conventions.mit
VELOCITY, CUBIC = conventions.velocity, Partial(conventions.polynomial, power=3.0)
SQUARE = conventions.scheduled(_mit_alpha, _mit_beta)
CASES = {
    'sit linear velocity': Case(SIT(processes.linear, VELOCITY), _flow(_linear, 'velocity'), 0, 0.99),
    'sit gvp noise': Case(SIT(processes.cosine, outputs.eps), _flow(_gvp, 'noise'), 0.01, 0.99),
    'sit gvp velocity': Case(SIT(processes.cosine, VELOCITY), _flow(_gvp, 'velocity'), 0, 0.99),
    'sit vp velocity': Case(SIT(VP, VELOCITY), _flow(_sit_vp, 'velocity'), 0.01, 0.99),
    'sit vp score': Case(SIT(VP, outputs.score), _flow(_sit_vp, 'score'), 0.01, 0.99),
    'eqm': Case(conventions.eqm(), _eqm, 0, 0.99),
    'fm condot data': Case(FM(processes.linear, outputs.x), _flow(_linear, 'data'), 0, 0.99),
    'fm cubic velocity': Case(FM(CUBIC, VELOCITY), _flow(_cubic, 'velocity'), 0.01, 0.99),
    'fm vp noise': Case(FM(VP, outputs.eps), _flow(_fm_vp, 'noise'), 0.01, 0.99),
    'fm linear vp velocity': Case(
        FM(conventions.linear_alpha, VELOCITY), _flow(_linear_vp, 'velocity'), 0.01, 0.99),
    'fm cosine velocity': Case(FM(processes.cosine, VELOCITY), _flow(_gvp, 'velocity'), 0, 0.99),
    'mit condot velocity': Case(MIT(processes.linear, VELOCITY), _flow(_linear, 'velocity'), 0, 0.99),
    'mit general score': Case(MIT(SQUARE, outputs.score), _flow(_mit_square, 'score'), 0.05, 0.99),
    'mit general velocity': Case(MIT(SQUARE, VELOCITY), _flow(_mit_square, 'velocity'), 0.05, 0.99),
    'edm denoiser': Case(conventions.edm(), _edm, 80.0, 0.01),
    'edm network': Case(conventions.edm_network(), _edm_network, math.log(80) / 4, math.log(0.01) / 4),
    **{f'diffusers {theirs}': Case(conventions.diffusers(SCALED_LINEAR, ours), _diffusers(theirs),
                                   999, 0)
       for theirs, ours in (('epsilon', outputs.eps), ('v_prediction', outputs.v),
                            ('sample', outputs.x))},
    'diffusers flow': Case(conventions.diffusers_flow(), _diffusers_flow, 1000.0, 5.0),
    'diffusers flow, shift 3': Case(
        conventions.diffusers_flow(shift=3.0), _diffusers_flow, 1000.0, 5.0),
    **{f'vdm {name}': Case(conventions.vdm(rows.OUTPUTS[name]), _vdm(name), 5.0, -13.0)
       for name in ('eps', 'v', 'x')},
}
# Alike enough to another case for the long tests alone.
ALIKE = ('sit vp score', 'fm condot data', 'fm cosine velocity', 'mit condot velocity',
         'diffusers sample', 'diffusers flow', 'vdm x')
MARKED = [pytest.param(name, marks=[pytest.mark.long] * (name in ALIKE)) for name in CASES]
OURS = {name: rows.OUTPUTS[name] for name in ('x', 'eps', 'v', 'displacement')}


def _times(case, n):
  """n of their times between the ends of the case; integers if they are entries of a table."""
  times = np.random.default_rng(0).uniform(*sorted((case.start, case.end)), n)
  return jnp.asarray(np.round(times) if case.start == 999 else times)


def _near(found, expected, what=''):
  """Passes if they agree to 1e-12 of the largest entry."""
  error = abs(np.subtract(found, expected)).max() / abs(np.asarray(expected)).max()
  assert error <= 1e-12, f'{what}: {error:.1e}'


@pytest.mark.parametrize('name', MARKED)
def test_their_state_and_target_become_ours_for_the_same_data_and_noise(name, x64):
  convention, theirs, _, _ = CASES[name]
  their_t = _times(CASES[name], 64)
  x, eps = np.random.default_rng(1).normal(size=(2, 64, 3))
  their_z, their_y = jax.jit(theirs)(their_t[:, None], x, eps)
  for to, output in OURS.items():
    t, z, y = conventions.to_ours(convention, their_t, their_z, their_y, output=output)
    expected = mix(convention.process(t), x, eps), mix(output(convention.process, t), x, eps)
    for found, ours in zip((z, y), expected):
      _near(found, ours, to)


@pytest.mark.parametrize('name', MARKED)
def test_as_model_inverts_to_ours_for_any_state_and_output(name, x64):
  convention = CASES[name].convention
  their_t = _times(CASES[name], 64)
  their_z, their_y = jax.random.normal(jax.random.key(2), (2, 64, 3))
  for to, output in OURS.items():
    t, z, y = conventions.to_ours(convention, their_t, their_z, their_y, output=output)
    model = conventions.as_model(convention, lambda z, t: y, output=output)
    _near(model(their_z, their_t), their_y, to)
    _near(convention.their_time(t), their_t, to)
    _near(arrays.combine((convention.scale(t), z)), their_z, to)


# Their own conversions: (convention, our output, formula of their t, state and output). States and
# outputs are independent random numbers, so a wrong coefficient changes the result.

def _score_from_velocity(t, x, v):
  """SiT's get_score_from_velocity; GVP."""
  alpha, d_alpha, sigma, d_sigma = _gvp(t)
  ratio = alpha / d_alpha
  return (ratio * v - x) / (sigma**2 - ratio * d_sigma * sigma)


def _noise_from_velocity(t, x, v):
  """SiT's get_noise_from_velocity; VP."""
  alpha, d_alpha, sigma, d_sigma = _sit_vp(t)
  ratio = alpha / d_alpha
  return (ratio * v - x) / (ratio * d_sigma - sigma)


def _velocity_to_target(t, x, v):
  """flow_matching's; PolynomialConvex."""
  alpha, d_alpha, sigma, d_sigma = _cubic(t)
  return (-d_sigma * x + sigma * v) / (d_alpha * sigma - d_sigma * alpha)


def _epsilon_to_velocity(t, x, epsilon):
  """flow_matching's; VP."""
  alpha, d_alpha, sigma, d_sigma = _fm_vp(t)
  return d_alpha / alpha * x + (d_sigma * alpha - d_alpha * sigma) / alpha * epsilon


def _target_to_velocity(t, x, target):
  """flow_matching's; CondOT."""
  return -x / (1 - t) + (1 - t + t) / (1 - t) * target


def _mit_score(t, x, u):
  alpha, d_alpha, beta, d_beta = _mit_square(t)
  return (alpha * u - d_alpha * x) / (beta**2 * d_alpha - alpha * d_beta * beta)


def _mit_condot_score(t, x, u):
  return (t * u - x) / (1 - t)


def _edm_denoiser(c_noise, c_in_x, f):
  sigma, sd = jnp.exp(4 * c_noise), 0.5
  x = c_in_x * jnp.sqrt(sd**2 + sigma**2)
  return sd**2 / (sigma**2 + sd**2) * x + sigma * sd / jnp.sqrt(sigma**2 + sd**2) * f


def _edm_slope(sigma, x, denoised):
  """dx/dsigma of EDM's algorithm 1."""
  return (x - denoised) / sigma


def _alpha_sigma(k):
  a = jnp.asarray(SCALED_LINEAR)[k.astype(int)]
  return a**0.5, (1 - a) ** 0.5


def _pred_original_from_v(k, sample, v):
  alpha, sigma = _alpha_sigma(k)
  return alpha * sample - sigma * v


def _pred_epsilon_from_v(k, sample, v):
  alpha, sigma = _alpha_sigma(k)
  return alpha * v + sigma * sample


def _pred_original_from_epsilon(k, sample, epsilon):
  alpha, sigma = _alpha_sigma(k)
  return (sample - sigma * epsilon) / alpha


def _flow_denoised(timestep, sample, output):
  return sample - timestep / 1000 * output


def _vdm_data(gamma, z, eps):
  """z/alpha - exp(gamma/2) eps: their z_0_rescaled, solved for the image."""
  return z * jnp.sqrt(1 + jnp.exp(gamma)) - jnp.exp(0.5 * gamma) * eps


@pytest.mark.parametrize('name,output,formula', [
    ('sit gvp velocity', outputs.score, _score_from_velocity),
    ('sit vp velocity', outputs.eps, _noise_from_velocity),
    ('fm cubic velocity', outputs.x, _velocity_to_target),
    ('fm vp noise', conventions.velocity, _epsilon_to_velocity),
    ('fm condot data', conventions.velocity, _target_to_velocity),
    ('mit general velocity', outputs.score, _mit_score),
    ('mit condot velocity', outputs.score, _mit_condot_score),
    ('edm network', outputs.x, _edm_denoiser),
    ('edm denoiser', outputs.u, _edm_slope),
    ('diffusers v_prediction', outputs.x, _pred_original_from_v),
    ('diffusers v_prediction', outputs.eps, _pred_epsilon_from_v),
    ('diffusers epsilon', outputs.x, _pred_original_from_epsilon),
    ('diffusers flow, shift 3', outputs.x, _flow_denoised),
    ('vdm eps', outputs.x, _vdm_data),
], ids=lambda value: getattr(value, '__name__', str(value))[:24])
def test_their_conversions_are_cramers_rule(name, output, formula, x64):
  t = _times(CASES[name], 64)
  z, y = jax.random.normal(jax.random.key(2), (2, 64, 3))
  _, _, found = conventions.to_ours(CASES[name].convention, t, z, y, output=output)
  _near(found, jax.jit(formula)(t[:, None], z, y))


@pytest.mark.parametrize('convention,clean,noisy,their_clean,their_noisy', [
    *[(CASES[name].convention, 0.0, 1.0, 1, 0) for name in (
        'sit linear velocity', 'eqm', 'fm condot data', 'mit general score')],
    (conventions.edm(), 0.0, 80.0, 0, 80),
    (conventions.edm_network(), 0.0, 80.0, -np.inf, np.log(80) / 4),
    (conventions.diffusers(tables.cosine(50), outputs.v), 0.0, 1.0, -1, 49),
    (conventions.diffusers_flow(shift=3.0), 0.0, 1.0, 0, 1000),
    (conventions.diffusers_flow(), 0.0, 0.5, 0, 500),
    (conventions.vdm(outputs.v), 0.0, 1.0, -13.3, 5),
])
def test_data_and_noise_are_at_their_published_times(convention, clean, noisy, their_clean, their_noisy,
                                                     x64):
  for t, theirs in ((clean, their_clean), (noisy, their_noisy)):
    np.testing.assert_allclose(convention.their_time(jnp.float64(t)), theirs, rtol=1e-15, atol=1e-15)
    np.testing.assert_allclose(convention.time(jnp.float64(theirs)), t, rtol=1e-14, atol=1e-15)


# Data of two components: their means, standard deviations and weights.
COMPONENTS = np.array([[-1.0, 0.2, 0.3], [0.8, 0.4, 0.7]])


def _plane(theirs, t):
  """Their alpha and sigma, and the coefficients of data and of noise in their output."""
  (alpha, out_x), (sigma, out_eps) = theirs(t, 1.0, 0.0), theirs(t, 0.0, 1.0)
  return alpha, sigma, out_x, out_eps


def _exact_model(z, t, *, theirs):
  """E[their output | z, t] for one-dimensional data of COMPONENTS."""
  alpha, sigma, out_x, out_eps = _plane(theirs, t[:, None])
  mean, std, weight = COMPONENTS.T
  variance = (alpha * std) ** 2 + sigma**2
  offset = z - alpha * mean
  share = jax.nn.softmax(jnp.log(weight / jnp.sqrt(variance)) - offset**2 / (2 * variance))
  x = share * (mean + alpha * std**2 / variance * offset)
  eps = share * sigma / variance * offset
  return (out_x * x + out_eps * eps).sum(1, keepdims=True)


def _cumulated(theirs, t, z):
  """P(their state at t < z)."""
  alpha, sigma, *_ = _plane(theirs, t)
  mean, std, weight = COMPONENTS.T
  return (weight * jax.scipy.stats.norm.cdf(z, alpha * mean, jnp.hypot(alpha * std, sigma))).sum(1)


@pytest.mark.parametrize('name', [
    'eqm', 'fm cubic velocity', 'edm network', 'diffusers v_prediction', 'vdm eps',
    *(pytest.param(name, marks=pytest.mark.long) for name in (
        'sit linear velocity', 'sit vp score', 'fm condot data', 'mit general velocity', 'edm denoiser',
        'diffusers flow, shift 3'))])
def test_our_solver_samples_an_exact_network_of_theirs(name, x64):
  # In one dimension the ODE preserves order, so the CDF at a trajectory is constant.
  convention, theirs, start, end = CASES[name]
  model = Partial(_exact_model, theirs=Partial(theirs))
  solver = samplers.dpmpp_2m(convention.process, convention.output)

  @jax.jit
  def cumulated(their_times):
    times = convention.time(their_times)
    alpha, sigma, *_ = _plane(theirs, their_times[0])
    their_z = np.linspace(-2, 2, 9)[:, None] * jnp.hypot(alpha, sigma)
    z = samplers.sample(solver, conventions.as_predict(convention, model),
                        their_z / convention.scale(times[0]), times)
    return (_cumulated(theirs, their_times[0], their_z),
            _cumulated(theirs, their_times[-1], z * convention.scale(times[-1])))

  spaced = np.geomspace if name == 'edm denoiser' else np.linspace
  first, last = cumulated(spaced(start, end, 1000))
  np.testing.assert_allclose(last, first, atol=2e-4)


def _any_model(z, t):
  return {'a': jnp.sin(z['a']) + t[:, None], 'b': z['b'] * t[:, None, None]}


@pytest.mark.parametrize('name', ['sit gvp velocity', 'edm network', 'diffusers flow, shift 3'])
def test_as_model_inverts_as_predict(name, x64):
  convention, t = CASES[name].convention, _times(CASES[name], 4)
  predict = conventions.as_predict(convention, _any_model)
  back = conventions.as_model(convention, predict, output=convention.output)
  z = {'a': jax.random.normal(jax.random.key(0), (4, 2)), 'b': jnp.ones((4, 2, 2))}
  for leaf, expected in _any_model(z, t).items():
    _near(jax.jit(back)(z, t)[leaf], expected, leaf)


def test_our_predictor_is_a_network_for_their_sampler(x64):
  # The pipeline needs v; our predictor returns x = 2.
  theirs = CASES['diffusers v_prediction'].convention
  model = conventions.as_model(theirs, lambda z, t: 2 * jnp.ones_like(z), output=outputs.x)
  k, sample = np.array([0, 500, 999]), np.array([[1.0], [-0.5], [0.3]])
  alpha, sigma = np.sqrt([SCALED_LINEAR[k], 1 - SCALED_LINEAR[k]])[..., None]
  _near(jax.jit(model)(sample, k), alpha * (sample - alpha * 2) / sigma - sigma * 2)


@pytest.mark.parametrize('make,output,named', [
    (lambda output: SIT(processes.linear, output), outputs.u,
     r"output='u'.* sit.*\['velocity', 'eps', 'score'\]"),
    (lambda output: FM(processes.linear, output), outputs.u, r"\['velocity', 'x', 'eps'\]"),
    (lambda output: MIT(processes.linear, output), outputs.u, r"\['velocity', 'score'\]"),
    (lambda output: conventions.diffusers(SCALED_LINEAR, output), outputs.u, r"\['eps', 'v', 'x'\]"),
    (conventions.vdm, outputs.score, r"output='score'.* vdm"),
])
def test_an_output_that_a_project_lacks_is_rejected(make, output, named):
  with pytest.raises(ValueError, match=named):
    make(output)
