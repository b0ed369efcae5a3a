"""Densities match their formulas, and the adaptive one keeps the mean of the loss."""

import functools

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from eqflow import blind_spots, densities, fields, losses, oracles, outputs, processes, weights
from eqflow.config import tables
from tests import rows

DENSITIES = {
    'uniform': (densities.uniform, scipy.stats.uniform()),
    'uniform_on': (densities.uniform_on(0.2, 0.7), scipy.stats.uniform(0.2, 0.5)),
    'lognormal': (densities.lognormal(-1.2, 1.2), scipy.stats.lognorm(1.2, scale=np.exp(-1.2))),
}


@pytest.mark.parametrize('name', DENSITIES)
def test_densities_agree_with_scipy(name, x64):
  density, reference = DENSITIES[name]
  u = np.linspace(0.001, 0.999, 101)
  t = jax.jit(density.quantile)(u)
  np.testing.assert_allclose(t, reference.ppf(u), rtol=1e-9)
  np.testing.assert_allclose(jax.jit(density.pdf)(t), reference.pdf(reference.ppf(u)), rtol=1e-9)


def test_logit_normal_is_a_normal_in_its_logit(x64):
  density, u = densities.logit_normal(0.5, 0.8), np.linspace(0.001, 0.999, 101)
  t = np.asarray(jax.jit(density.quantile)(u))
  np.testing.assert_allclose(np.log(t / (1 - t)), scipy.stats.norm(0.5, 0.8).ppf(u), rtol=1e-8)
  mass, _ = scipy.integrate.quad(jax.jit(density.pdf), 1e-9, 1 - 1e-9)
  assert abs(mass - 1) < 1e-6, f'the density integrates to {mass}'


def test_u_is_never_zero_or_one():
  # The largest and smallest floats that a uniform draw in [0, 1) of 23 bits can give.
  for k, offset in ((0, 0), (0, 2**32 - 1)):
    u = densities.low_discrepancy(k, np.uint32(offset))
    assert 0 < u < 1
  u = densities.draw(jax.random.split(jax.random.key(0), 1000))
  assert (u > 0).all() and (u < 1).all()
  with jax.enable_x64(True):
    same = densities.draw(jax.random.split(jax.random.key(0), 1000))
  np.testing.assert_array_equal(u, same, 'the draw of a key must not depend on the default dtype')


def test_rounding_keeps_a_density_off_the_ends_of_its_range():
  u = np.float32([2.0**-24, 1 - 2.0**-24])
  for density, low in ((densities.uniform_on(0.5, 1.0), 0.5), (densities.logit_normal(0.0, 4.0), 0.0)):
    t = np.asarray(jax.jit(density.quantile)(u))
    assert (t > low).all() and (t < 1).all(), f"{t} touches an end"


def test_the_golden_sequence_equals_exact_arithmetic_up_to_the_last_index():
  k = np.concatenate([np.arange(1000), 2**32 - 1 - np.arange(1000)]).astype(np.uint32)
  exact = np.array([((int(i) * 2654435769 + 77) % 2**32 >> 9) * 2.0**-23 + 2.0**-24 for i in k])
  np.testing.assert_array_equal(densities.low_discrepancy(k, np.uint32(77)), exact)


@pytest.mark.parametrize('start', [0, 10**6, 4 * 10**9])
def test_any_run_of_the_golden_sequence_covers_the_unit_interval_evenly(start):
  u = np.sort(densities.low_discrepancy((start + np.arange(1024)).astype(np.uint32), np.uint32(5)))
  worst = np.abs(u - (np.arange(1024) + 0.5) / 1024).max()
  # Random draws would be off by about 0.03.
  assert worst < 0.004, f'a run of 1,024 leaves a hole of {worst:.4f}'


ADAPTIVE = densities.adaptive(process=processes.cosine, low=-6.0, high=7.0, bins=13)
# A histogram with a bump.
BUMP = np.stack([np.exp(-0.1 * (np.arange(13) - 4.0) ** 2), np.ones(13)]) * 50

ROWS = {
    'uniform': densities.uniform, 'uniform_on': densities.uniform_on(0.2, 0.7),
    'logit_normal': densities.logit_normal(0.5, 0.8), 'lognormal': densities.lognormal(-1.2, 1.2),
    'mode': densities.mode(1.29), 'mode, ends': densities.mode(-1.0),
    'mode, middle': densities.mode(2 / (np.pi - 2)), 'cosmap': densities.cosmap,
    'adaptive': ADAPTIVE.density(BUMP),
    'adaptive on edm': densities.adaptive(
        process=processes.edm, low=-8.0, high=9.0, bins=13).density(BUMP),
}


@pytest.mark.parametrize('name', ROWS)
def test_the_slope_of_the_quantile_is_one_over_the_pdf(name, x64):
  u = jnp.asarray(np.linspace(0.0013, 0.9987, 100))

  @jax.jit
  def drawn(density, u):
    t, slope = jax.jvp(density.quantile, (u,), (jnp.ones_like(u),))
    return t, slope * density.pdf(t)

  t, one = drawn(ROWS[name], u)
  assert (np.diff(t) >= 0).all(), 't must rise with u'
  # mode is singular at the middle or the ends, near which t gives fewer digits of u.
  np.testing.assert_allclose(one, 1, rtol=1e-9)


def test_every_density_of_the_table_is_tested():
  assert set(tables.DENSITIES) <= set(ROWS)


def test_mode_matches_sd3(x64):
  # [Esser+ 2403.03206, eq. 20]: t = f(u) for uniform u, f falling from 1 to 0.
  pdf = jax.jit(lambda t, scale: densities.mode(scale).pdf(t))
  slope = jax.jit(jax.grad(lambda t, scale: jnp.log(densities.mode(scale).pdf(t))))
  u = np.linspace(0.01, 0.99, 99)
  for scale in (-1.0, -0.4, 0.0, 0.81, 1.29):
    f = 1 - u - scale * (np.cos(np.pi / 2 * u) ** 2 - 1 + u)
    np.testing.assert_allclose(densities.mode(scale).quantile(jnp.asarray(1 - u)), f, rtol=1e-12)
    # The density at f(u) is 1/|f'(u)|, more of the middle where the scale is positive.
    rate = np.abs(-1 - scale * (1 - np.pi / 2 * np.sin(np.pi * u)))
    np.testing.assert_allclose(pdf(jnp.asarray(f), scale), 1 / rate, rtol=1e-8)
    t, step = 0.3, 1e-5
    ends = np.log([pdf(t - step, scale), pdf(t + step, scale)])
    np.testing.assert_allclose(slope(t, scale), np.diff(ends)[0] / (2 * step), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize('scale', [-1.01, 1.76, np.nan])
def test_a_mode_that_is_not_monotone_is_rejected(scale):
  with pytest.raises(ValueError, match=rf'mode\({scale}'):
    densities.mode(scale)


def test_cosmap_is_the_cosine_process_on_the_linear_one(x64):
  found, expected = jax.jit(lambda u: (
      processes.logsnr(processes.linear, densities.cosmap.quantile(u)),
      processes.logsnr(processes.cosine, u)))(np.linspace(0.01, 0.99, 99))
  np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_adaptive_density_starts_uniform_in_log_snr_within_its_range(x64):
  density = ADAPTIVE.density(ADAPTIVE.start.astype(float))
  value = jax.jit(lambda u: processes.logsnr(processes.cosine, density.quantile(u)))(
      np.linspace(0.001, 0.999, 201))
  np.testing.assert_allclose(value, np.linspace(7, -6, 201) + 13 * 0.001 * np.linspace(-1, 1, 201),
                             atol=1e-10)
  np.testing.assert_array_equal(jax.jit(density.pdf)(np.array([1e-4, 0.9999])), 0)


@pytest.mark.parametrize('process', ['linear', 'variance_preserving', 'edm'])
def test_every_u_has_a_finite_weight_in_float32(process):
  process = rows.PROCESSES[process]
  adaptive = densities.adaptive(process=process, low=-9.5, high=20.0)
  loss = np.geomspace(1, 1e-6, 100)
  density = adaptive.density(np.stack([loss, np.ones(100)]).astype(np.float32) * 900)

  @jax.jit
  def weighed(u):
    t = density.quantile(u)
    return t, weights.on_logsnr(process, t, w=weights.elbo, density=density)

  t, weight = map(np.asarray, weighed(
      np.float32(np.r_[2.0**-24, np.linspace(0.0001, 0.9999, 999), 1 - 2.0**-24])))
  assert t.dtype == np.float32 and np.isfinite(weight).all() and (weight > 0).all()


@pytest.mark.parametrize('change,message', [
    (dict(low=8.0), 'low=8.0, high=7.0'), (dict(bins=1), 'bins=1,'), (dict(bins=2.5), 'bins=2.5'),
    (dict(keep=1.0), 'keep=1.0'),
    (dict(process=rows.PROCESSES['variance_preserving'], low=-12.0),
     r"log-SNR from -12.0 to 7.0 on 'variance_preserving', which in float32 goes from -10.0\d* to 7"),
    (dict(low=-40.0), r"on 'linear', which in float32 goes from -inf to 7")])
def test_bad_numbers_of_an_adaptive_density_are_rejected(change, message):
  with pytest.raises(ValueError, match=message):
    densities.adaptive(**{**dict(process=processes.linear, low=-6.0, high=7.0, bins=10), **change})


# x ~ N(0, s^2) in 16 elements, and the best predictor: Var[eps | z] = alpha^2 s^2/(alpha^2 s^2 +
# sigma^2) = sigmoid(lambda + 2 log s).
STD, SIZE, LOW, HIGH, BINS = 0.4, 16, -8.0, 10.0, 20
SIGMOID = Partial(weights.sigmoid, bias=2.0)


def _profile(value):
  """w(lambda) E|eps error|^2 of the best predictor."""
  return 1 / (1 + np.exp(value - 2)) / (1 + np.exp(-value) / STD**2)


@pytest.fixture(scope='module')
def adapted():
  adaptive = densities.adaptive(process=processes.linear, low=LOW, high=HIGH, bins=BINS, keep=0.999)
  exact = Partial(oracles.gaussian, process=processes.linear, output=outputs.v, mean=jnp.zeros(SIZE),
                  cov=STD**2 * jnp.eye(SIZE))

  @jax.jit
  def losses_of(histogram, key):
    x = STD * jax.random.normal(jax.random.fold_in(key, 1), (1024, SIZE))
    density = adaptive.density(histogram)
    loss, aux = losses.matching_loss(
        jax.random.split(key, 1024), exact, x, process=processes.linear, output=outputs.v,
        space=outputs.eps, density=density,
        weight=Partial(weights.on_logsnr, w=SIGMOID, density=density))
    return loss, adaptive.measure(histogram, aux['t'], loss)

  histogram, seen = adaptive.start, []
  for i in range(60):
    loss, histogram = losses_of(histogram, jax.random.key(i))
    seen.append(np.asarray(loss))
  return adaptive, histogram, np.array(seen)


def test_the_density_becomes_the_profile_of_the_loss(adapted):
  adaptive, histogram, _ = adapted
  edges = np.linspace(LOW, HIGH, BINS + 1)
  whole, _ = scipy.integrate.quad(_profile, LOW, HIGH)
  expected = [scipy.integrate.quad(_profile, *ends)[0] / whole for ends in zip(edges, edges[1:])]
  t = 1 / (1 + np.exp((edges[1:] + edges[:-1]) / 4))
  speed = 2 / (t * (1 - t))
  found = jax.jit(adaptive.density(histogram).pdf)(jnp.asarray(t)) / speed * (HIGH - LOW) / BINS
  # A bin averages up to a thousand examples, each with a relative variance of 2/16 and of the
  # profile within the bin; one that few have seen is still drawn towards the average, 1/20.
  expected = np.array(expected)
  often = expected > 0.01
  np.testing.assert_allclose(found[often], expected[often], rtol=0.06)
  assert (found[~often] > 0.9 * expected[~often]).all()
  np.testing.assert_allclose(found[~often], expected[~often], rtol=0.1, atol=0.05 / 50)
  assert max(expected) > 20 * min(expected), 'the profile should be far from even'


def test_an_adapted_density_keeps_the_loss_and_lowers_its_variance(adapted):
  _, _, seen = adapted
  whole, _ = scipy.integrate.quad(_profile, LOW, HIGH)
  for name, loss in (('even', seen[0]), ('adapted', seen[30:].ravel())):
    error = loss.std() / np.sqrt(loss.size)
    assert abs(loss.mean() - whole) < 4 * error, f'{name}: {loss.mean()} for {whole} +- {error}'
  # With uniform times the losses vary like the profile. With adapted times they vary like
  # |eps error|^2 of 16 elements, with relative variance 2/16, and like the profile within a bin.
  relative = lambda loss: (loss.std() / loss.mean()) ** 2
  assert relative(seen[0]) > 1 and relative(seen[30:]) < 2 / 16 + 0.05


def test_the_histogram_sums_its_examples_with_the_decay_keep(x64):
  adaptive = densities.adaptive(process=processes.linear, low=-4.0, high=4.0, bins=4, keep=0.5)
  t = 1 / (1 + np.exp(np.array([-3.0, -3.5, 1.0]) / 2))
  # Drawn evenly, p = 1/8: losses of 8 w E.
  measure = jax.jit(adaptive.measure)
  first = measure(adaptive.start.astype(float), t, np.array([8.0, 24.0, 48.0]))
  np.testing.assert_allclose(first, [[4, 0, 6, 0], [2, 0, 1, 0]], rtol=1e-12)
  # Bins of 2 and 6 on average: each bin has also seen one of 4.
  share = np.array([(4 + 4) / 3, 4, (6 + 4) / 2, 4])
  density = adaptive.density(first)
  middles = 1 / (1 + np.exp(np.array([-3.0, -1.0, 1.0, 3.0]) / 2))
  speed = 2 / (middles * (1 - middles))
  np.testing.assert_allclose(jax.jit(density.pdf)(middles) / speed, share / share.sum() / 2, rtol=1e-12)
  # Drawn by that density, p = share/sum/2, a loss counts for less where it is drawn more.
  second = measure(first, t[:1], np.array([8.0]))
  whole = 8 * share[0] / share.sum() / 2
  np.testing.assert_allclose(second, [[4 / 2 + whole, 0, 6, 0], [2 / 2 + 1, 0, 1, 0]], rtol=1e-12)


def test_with_data_gives_a_share_at_zero_and_the_rest_by_the_density():
  inner = densities.logit_normal(0.5, 0.8)
  density = densities.with_data(inner, 0.25)
  u = densities.low_discrepancy(np.arange(4000), 7)
  t = np.asarray(jax.jit(density.quantile)(u))
  assert abs((t == 0).sum() - 1000) <= 2, 'stratified draws hit the share to an example or two'
  # The rest is spread evenly over the probabilities of the density itself.
  rest = scipy.stats.norm(0.5, 0.8).cdf(np.sort(scipy.special.logit(t[t > 0])))
  np.testing.assert_allclose(rest, (np.arange(len(rest)) + 0.5) / len(rest), atol=2e-3)
  np.testing.assert_allclose(jax.jit(density.pdf)(0.3), 0.75 * jax.jit(inner.pdf)(0.3), rtol=1e-6)
  # For any rounding of share the largest u stays below 1, where a quantile may be infinite.
  for share in (0.0, 0.1, 0.3, 0.9999):
    quantile = densities.with_data(densities.lognormal(0.0, 1.0), share).quantile
    ends = jax.jit(quantile)(np.float32([2.0**-24, share, 1 - 2.0**-24]))
    assert np.isfinite(ends).all() and ends[2] > 0
  for share in (-0.1, 1.0, float('nan')):
    with pytest.raises(ValueError, match=f'share={share}'):
      densities.with_data(densities.uniform, share)


def test_only_outputs_that_are_bounded_at_data_train_with_data():
  density, field = densities.with_data(densities.uniform, 0.5), rows.OUTPUTS['equilibrium_truncated']
  check = functools.partial(blind_spots.check_training, density, process=processes.linear)
  check(output=field, c_noise=fields.none, weight=weights.ones)
  x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
  keys = jax.random.split(jax.random.key(0), 64)
  loss, aux = jax.tree.map(np.asarray, jax.jit(lambda keys: losses.matching_loss(
      keys, lambda z, t: z, x, process=processes.linear, output=field, density=density))(keys))
  at_data = aux['t'] == 0
  # There z is x, and the target is zero.
  assert 15 < at_data.sum() < 50 and np.isfinite(loss).all()
  np.testing.assert_allclose(loss[at_data], np.mean(x[at_data] ** 2, axis=1), rtol=1e-6)
  for message, given in (
      ("output 'score' has no bounded loss at t=0", dict(output=outputs.score)),
      ("output 'equilibrium' has no bounded loss at t=0", dict(output=field, space=outputs.x)),
      ("'logsnr' is not finite at t=0", dict(output=field, c_noise=fields.logsnr)),
      ("weight 'on_logsnr' is not finite at t=0", dict(
          output=outputs.eps, weight=Partial(weights.on_logsnr, w=weights.flow_matching,
                                             density=density)))):
    with pytest.raises(ValueError, match=message):
      check(**given)
