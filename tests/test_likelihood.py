"""Likelihoods match closed forms, are normalized and unbiased, and bits bound the discrete model."""

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np
import pytest
from scipy import linalg, stats

from eqflow import arrays, fields, likelihood, oracles, outputs, processes
from tests import rows

LINEAR = processes.linear
MEANS, STDS, WEIGHTS = np.array([[-1.2], [0.9]]), np.array([0.35, 0.5]), np.array([0.4, 0.6])
MEAN = float(WEIGHTS @ MEANS[:, 0])
STD = float(np.sqrt(WEIGHTS @ (MEANS[:, 0] ** 2 + STDS**2) - MEAN**2))
X = np.linspace(-2.4, 2.5, 29)[:, None]
FINE = np.linspace(1e-5, 1, 129)


def _log_p(x):
  return np.log(sum(w * stats.norm.pdf(x[:, 0], m, s)
                    for w, m, s in zip(WEIGHTS, MEANS[:, 0], STDS)))


def _mixture(process, output):
  return Partial(oracles.mixture, process=process, output=output, means=MEANS, stds=STDS,
                 weights=WEIGHTS)


def _found(process, output, x=X, **more):
  return likelihood.log_likelihood(_mixture(process, output), jnp.asarray(x), process=process,
                                   output=output, mean=MEAN, std=STD, **more)[0]


@pytest.mark.parametrize('name,output,times', [
    ('edm', 'edm', (1e-4, 80.0)),
    *(pytest.param(*row, marks=pytest.mark.long) for row in [
        ('linear', 'u', (1e-5, 1.0)), ('variance_preserving', 'eps', (1e-5, 1.0)),
        ('cosine', 'x', FINE), ('scaled', 'v', FINE), ('linear', 'score', FINE * 0.999)])])
def test_the_density_of_a_mixture_is_exact_to_a_ten_thousandth_of_a_nat(name, output, times, x64):
  found = _found(rows.PROCESSES[name], rows.OUTPUTS[output], times=times)
  np.testing.assert_allclose(found, _log_p(X), atol=1e-4)


def test_float32_is_exact_to_a_thousandth_of_a_nat():
  found = _found(LINEAR, outputs.v)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, _log_p(X), atol=1e-3)


@pytest.mark.long
def test_a_discrete_table_is_transported_to_a_smooth_process(x64):
  table, smooth = rows.PROCESSES['discrete'], processes.cosine
  transport = processes.transport(table, smooth)
  output = Partial(outputs.transported, output=outputs.v, process_a=table, time=transport.time)
  found, _ = likelihood.log_likelihood(
      fields.transported(_mixture(table, outputs.v), transport), jnp.asarray(X), process=smooth,
      output=output, times=FINE)
  np.testing.assert_allclose(found, _log_p(X), atol=1e-4)


def _any_field(z, t):
  return 0.3 * z + jnp.sin(2 * z) + t[:, None]


@pytest.mark.parametrize('start', [1e-5, 0.3])
def test_the_density_of_any_field_integrates_to_one(start, x64):
  # At t = 0.3 the state is z = 0.7 x + ..., and the density is over z, not x.
  x = jnp.linspace(-12, 12, 2401)[:, None]
  found, _ = likelihood.log_likelihood(_any_field, x, process=LINEAR, output=outputs.u,
                                       times=np.linspace(start, 1, 65))
  mass = np.trapezoid(np.exp(found), x[:, 0])
  assert abs(mass - 1) < 1e-4, f'the density has mass {mass:.6f}'


def test_the_fixed_grid_is_of_fourth_order(x64):
  errors = [np.sqrt(np.mean((_found(LINEAR, outputs.u, times=np.linspace(1e-6, 1, n + 1))
                             - _log_p(X)) ** 2)) for n in (40, 80)]
  order = np.log2(errors[0] / errors[1])
  assert 3.7 < order < 4.7, f'order {order:.2f}, errors {errors}'


def test_the_gradient_of_the_likelihood_is_the_score(x64):
  x = jnp.asarray(X)
  slope = jax.grad(lambda x: _found(LINEAR, outputs.u, x, times=FINE).sum())(x)
  share = WEIGHTS * stats.norm.pdf(X, MEANS[:, 0], STDS)
  score = (share * (MEANS[:, 0] - X) / STDS**2).sum(1) / share.sum(1)
  np.testing.assert_allclose(slope[:, 0], score, atol=1e-3)


COV = np.array([[0.5, 0.3], [0.3, 0.4]])


def _gaussian_found(x, keys, **more):
  predict = Partial(oracles.gaussian, process=LINEAR, output=outputs.u, mean=jnp.zeros(len(COV)),
                    cov=jnp.asarray(COV))
  return likelihood.log_likelihood(predict, jnp.asarray(x), process=LINEAR, output=outputs.u,
                                   keys=keys, **more)[0]


def _all_signs(keys, z):
  return jnp.asarray([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])


def test_hutchinsons_estimate_over_all_signs_is_the_trace(x64):
  # The flow of this Gaussian is C^(-1/2), so du/dz integrates to -log(C)/2, and the probes add
  # v_1 v_2 of twice its corner.
  x = np.array([0.4, -0.7])
  exact = stats.multivariate_normal.logpdf(x, cov=COV)
  keys = jax.random.split(jax.random.key(0), 4)
  found = _gaussian_found(np.tile(x, (4, 1)), keys, probe=_all_signs, times=FINE)
  corner = linalg.logm(COV)[0, 1]
  np.testing.assert_allclose(found, exact - corner * np.array([1, -1, -1, 1]), atol=1e-6)


@pytest.mark.parametrize('probe,num_probes', [(likelihood.rademacher, 3), (arrays.noise_like, 1)])
def test_hutchinsons_estimate_has_the_mean_and_spread_of_theory(probe, num_probes, x64):
  x, n = np.array([0.4, -0.7]), 3000
  keys = jax.random.split(jax.random.key(1), n)
  found = np.asarray(_gaussian_found(np.tile(x, (n, 1)), keys, probe=probe, num_probes=num_probes,
                                     times=FINE[::4]))
  symmetric = linalg.logm(COV) / 2
  variance = 2 * (symmetric**2).sum()
  if probe is likelihood.rademacher:
    variance -= 2 * (np.diag(symmetric) ** 2).sum()
  error = np.sqrt(variance / num_probes / n)
  assert abs(found.mean() - stats.multivariate_normal.logpdf(x, cov=COV)) < 4 * error
  np.testing.assert_allclose(found.var(), variance / num_probes, rtol=0.15)


def test_trees_and_images_have_a_density_over_all_their_elements(x64):
  # 75 elements of two leaves, independent, with a mean and a std for each leaf.
  mean, std = {'a': 0.5, 'b': -1.0}, {'a': 0.3, 'b': 0.8}
  keys = jax.random.split(jax.random.key(0), 3)
  x = arrays.noise_like(keys, {'a': jnp.zeros((3, 6, 6, 2)), 'b': jnp.zeros((3, 3))})
  def predict(z, t):
    one = lambda z, m, s: oracles.gaussian(
        z.reshape(-1, 1), jnp.repeat(t, z[0].size), process=LINEAR, output=outputs.u,
        mean=jnp.array([m]), cov=jnp.array([[s**2]])).reshape(z.shape)
    return jax.tree.map(one, z, mean, std)
  found, latent = likelihood.log_likelihood(predict, x, process=LINEAR, output=outputs.u, times=FINE)
  expected = sum(stats.norm.logpdf(np.asarray(x[k]), mean[k], std[k]).reshape(3, -1).sum(1)
                 for k in x)
  np.testing.assert_allclose(found, expected, atol=1e-4)
  np.testing.assert_allclose(latent.z['b'], (x['b'] + 1) / 0.8, atol=1e-3)
  np.testing.assert_array_equal(latent.evaluations, 4 * 128)


def test_new_numbers_do_not_recompile_and_evaluations_are_counted():
  traces, calls = [], []
  def predict(z, t, *, rate):
    traces.append(1)
    jax.debug.callback(lambda: calls.append(1))
    return rate * z
  process = lambda b: Partial(processes.variance_preserving, beta_min=0.1, beta_max=b)
  def run(rate, b, tolerance):
    return likelihood.log_likelihood(
        Partial(predict, rate=rate), jnp.ones((1, 2)), process=process(b), output=outputs.v,
        times=(1e-4, 1.0), rtol=tolerance, atol=tolerance, std=b / 20)
  _, latent = run(0.5, 20.0, 1e-4)
  jax.effects_barrier()
  assert len(calls) == int(latent.evaluations[0]) > 7
  first = len(traces)
  run(0.6, 15.0, 1e-3)
  assert len(traces) == first


REFUSED = [
    (dict(times=(0.0, 1.0)), r'times \[.*t > 0'),
    (dict(times=(1.0, 1e-5)), r'times \[.*t > 0'),
    (dict(times=(1e-5, np.nan)), r'times \[.*t > 0'),
    (dict(times=(1e-5, 0.5)), r'at t=0.5 .*alpha=0.5, sigma=0.5'),
    (dict(output=outputs.eps), "output 'eps' is blind at t=1"),
    (dict(output=outputs.x, times=(1e-8, 1.0)), "output 'x' is blind at t=1e-08"),
    (dict(process=Partial(processes.shifted, process=LINEAR, shift=np.nan)), 'not a mix of data and'),
    (dict(num_probes=4), 'num_probes=4 with keys=None'),
    (dict(keys=jax.random.split(jax.random.key(0), 3)), r'keys has shape \(3,\) for 2 examples'),
    (dict(x=np.zeros((2, 2), np.uint8)), 'x is uint8'),
]


@pytest.mark.parametrize('given,message', REFUSED, ids=lambda v: str(v)[:24])
def test_bad_input_is_rejected_before_compiling(given, message):
  def predict(z, t):
    raise AssertionError('traced')
  given = dict(x=jnp.ones((2, 2)), process=LINEAR, output=outputs.u) | given
  with pytest.raises(ValueError, match=message):
    likelihood.log_likelihood(predict, given.pop('x'), **given)


def test_uniform_noise_costs_eight_bits(x64):
  # 256 grey levels of equal chance fill 256 bins.
  num_dims = 48
  log_p = -num_dims * np.log(256 * likelihood.BIN)
  np.testing.assert_allclose(likelihood.bits_per_dimension(log_p, num_dims), 8, rtol=1e-14)


@pytest.mark.parametrize('every', [1, 15])
def test_dequantized_bits_bound_the_discrete_model(every):
  # Under N(m, s^2) the bound is in closed form: uniform noise adds the variance of a bin.
  level, width, m, n = 135, every / 127.5, 0.06, 20_000
  s, centre = width / 2, level / 127.5 - 1
  image, keys = np.full((n, 1), level, np.uint8), jax.random.split(jax.random.key(0), n)
  x = np.asarray(likelihood.dequantize(keys, image, bin_width=width))
  np.testing.assert_array_equal(np.rint((x + 1) * 127.5 / every), image // every)
  bits = np.asarray(likelihood.bits_per_dimension(
      stats.norm.logpdf(x[:, 0], m, s), 1, bin_width=width))
  square = (centre - m) ** 2 + width**2 / 12
  expected = (np.log(2 * np.pi * s**2) / 2 + square / (2 * s**2) - np.log(width)) / np.log(2)
  assert abs(bits.mean() - expected) < 4 * bits.std() / np.sqrt(n)
  edges = stats.norm.cdf([centre - width / 2, centre + width / 2], m, s)
  assert bits.mean() > -np.log2(edges[1] - edges[0])


def test_only_uint8_images_are_dequantized():
  with pytest.raises(ValueError, match='image is float32'):
    likelihood.dequantize(jax.random.split(jax.random.key(0), 2), jnp.zeros((2, 4)))
