"""Objectives are weights of log-SNR: each paper's row, the weight that a loss implies, and back."""

import functools

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from ml_collections import ConfigDict
import numpy as np
import pytest
import scipy.special
import scipy.stats

from eqflow import densities, fields, losses, outputs, processes, weights
from eqflow.config import tables
from eqflow.config.rows import bind
from tests import rows

P, S, SD, GAMMA, BIAS = -0.7, 0.9, 0.6, 1.7, 0.8
NORMAL = lambda value: scipy.stats.norm.pdf(value, -2 * P, 2 * S)
EDM = Partial(outputs.edm, sigma_data=SD)
VALUES = np.linspace(-6.3, 6.1, 41)


@functools.cache
def _at(name, values=tuple(VALUES)):
  """The times at which log-SNR has these values."""
  inverse = Partial(processes.time_of_logsnr, rows.PROCESSES[name],
                    high=100.0 if name == 'edm' else 1.0)
  return np.asarray(jax.jit(inverse)(np.array(values)))


def _implied(process, density, output, **more):
  return np.asarray(jax.jit(lambda t: weights.implied(
      rows.PROCESSES[process], t, density=density, output=output, **more))(_at(process)))


@pytest.mark.parametrize('process,density,expected', [
    ('linear', densities.uniform, lambda v: 1 / np.cosh(v / 4) ** 2 / 8),
    ('cosine', densities.uniform, lambda v: 1 / np.cosh(v / 2) / (2 * np.pi)),
    ('linear', densities.cosmap, lambda v: 1 / np.cosh(v / 2) / (2 * np.pi)),
    ('edm', densities.lognormal(P, S), NORMAL),
    ('linear', densities.logit_normal(P, S), NORMAL),
], ids=['linear', 'cosine', 'cosmap', 'lognormal', 'logit_normal'])
def test_the_loss_on_eps_has_the_density_over_log_snr_as_its_weight(process, density, expected, x64):
  found = _implied(process, density, outputs.eps)
  np.testing.assert_allclose(found, expected(VALUES), rtol=1e-12)


@pytest.mark.parametrize('process', ['linear', 'cosine', 'variance_preserving', 'shifted'])
def test_an_output_stretches_the_error_of_eps_by_its_row(process, x64):
  # [diffusionflow.github.io]: x e^-l, v alpha^2 (e^-l + 1)^2, eps - x (e^(-l/2) + 1)^2. EDM's F:
  # 1/c_out^2 = 1/s^2 + 1/sd^2 of x, s^2 = e^-l.
  @jax.jit
  def found(t):
    implied = Partial(weights.implied, rows.PROCESSES[process], t, density=densities.uniform)
    return rows.PROCESSES[process](t).x, [implied(output=output) for output in (
        outputs.eps, outputs.x, outputs.v, outputs.displacement, EDM)]

  alpha, (eps, x, v, displacement, edm) = jax.tree.map(np.asarray, found(_at(process)))
  np.testing.assert_allclose(x / eps, np.exp(-VALUES), rtol=1e-11)
  np.testing.assert_allclose(v / eps, alpha**2 * (np.exp(-VALUES) + 1) ** 2, rtol=1e-11)
  np.testing.assert_allclose(displacement / eps, (np.exp(-VALUES / 2) + 1) ** 2, rtol=1e-11)
  np.testing.assert_allclose(edm / eps, np.exp(-VALUES) / SD**2 + 1, rtol=1e-11)


# name: w, its formula, and the loss that has it, with the constant that is left out.
SNR_WEIGHT = lambda f: lambda process, t: f(jnp.exp(processes.logsnr(process, t)))
SPECTRA = {
    'elbo': (weights.elbo, lambda v: np.ones_like(v), None),
    'sigmoid': (Partial(weights.sigmoid, bias=BIAS), lambda v: scipy.special.expit(BIAS - v), None),
    'flow_matching': (
        weights.flow_matching, lambda v: np.exp(-v / 2) / 2,
        (1, 'linear', densities.uniform, outputs.u, weights.ones)),
    'v on cosine': (
        weights.flow_matching, lambda v: np.exp(-v / 2) / 2,
        (2 / np.pi, 'cosine', densities.uniform, outputs.v, weights.ones)),
    'indi': (
        weights.indi, lambda v: np.exp(-v) / np.cosh(v / 4) ** 2 / 8,
        (1, 'linear', densities.uniform, outputs.x, weights.ones)),
    'edm': (
        Partial(weights.edm_logsnr, mean=P, std=S, sigma_data=SD),
        lambda v: NORMAL(v) * (np.exp(-v) + SD**2) / SD**2,
        (1, 'edm', densities.lognormal(P, S), EDM, weights.ones)),
    'sd3': (
        Partial(weights.sd3, mean=P, std=S), lambda v: NORMAL(v) * (1 + np.exp(-v / 2)) ** 2,
        (1, 'linear', densities.logit_normal(P, S), outputs.u, weights.ones)),
    'p2': (
        Partial(weights.p2, gamma=GAMMA, k=0.6),
        lambda v: 1 / np.cosh(v / 2) / (0.6 + np.exp(v)) ** GAMMA,
        (1 / (2 * np.pi), 'cosine', densities.uniform, outputs.eps,
         SNR_WEIGHT(lambda snr: (0.6 + snr) ** -GAMMA))),
    'min_snr': (
        Partial(weights.min_snr, gamma=3.0),
        lambda v: 1 / np.cosh(v / 2) * np.minimum(1, 3 * np.exp(-v)),
        (1 / (2 * np.pi), 'cosine', densities.uniform, outputs.eps,
         SNR_WEIGHT(lambda snr: jnp.minimum(snr, 3) / snr))),
    'monotone': (
        Partial(weights.monotone, w=Partial(weights.sd3, mean=P, std=S), peak=-1.5),
        lambda v: SPECTRA['sd3'][1](np.maximum(v, -1.5)), None),
}


@pytest.mark.parametrize('name', SPECTRA)
def test_a_row_is_the_formula_of_its_paper_and_implied_by_its_loss(name, x64):
  w, formula, loss = SPECTRA[name]
  np.testing.assert_allclose(jax.jit(w)(VALUES), formula(VALUES), rtol=1e-13)
  if loss:
    constant, process, density, output, weight = loss
    found = _implied(process, density, output, weight=weight)
    np.testing.assert_allclose(found, constant * formula(VALUES), rtol=1e-11)


def test_every_spectrum_of_the_table_is_tested():
  assert set(tables.SPECTRA) <= set(SPECTRA)


def test_a_config_can_nest_spectra(x64):
  section = ConfigDict(dict(name='on_logsnr', w=dict(name='monotone', peak=-1.5, w=dict(
      name='sd3', mean=P, std=S))))
  weight = bind(tables.WEIGHTS, section, 'loss.weight', density=densities.uniform)
  found = _implied('linear', densities.uniform, outputs.eps, weight=weight)
  np.testing.assert_allclose(found, SPECTRA['monotone'][1](VALUES), rtol=1e-11)


def test_edms_weight_on_x_implies_the_same_weight_as_its_output(x64):
  weighted = _implied('edm', densities.lognormal(P, S), EDM, space=outputs.x,
                      weight=Partial(weights.edm, sigma_data=SD))
  np.testing.assert_allclose(weighted, SPECTRA['edm'][1](VALUES), rtol=1e-12)


def test_the_sigmoid_on_x_equals_the_sigmoid_on_eps(x64):
  # e^b sigmoid(lambda - b) on the error of x, as simpler diffusion writes it.
  density = densities.logit_normal(0.2, 1.1)
  on_x = lambda value: jnp.exp(BIAS) * jax.nn.sigmoid(value - BIAS)
  found = _implied('linear', density, outputs.v, space=outputs.x,
                   weight=Partial(weights.on_logsnr, w=on_x, density=density))
  np.testing.assert_allclose(found, scipy.special.expit(BIAS - VALUES), rtol=1e-11)


DENSITIES = {'uniform': densities.uniform, 'logit_normal': densities.logit_normal(0.4, 1.3),
             'mode': densities.mode(0.8), 'cosmap': densities.cosmap,
             'lognormal': densities.lognormal(0.4, 1.3)}


# The long tests take every pair; here each process and each density comes once or more.
@pytest.mark.parametrize('process,density', [('edm', 'lognormal'), *(
    pytest.param(process, density, marks=[pytest.mark.long] * (
        process != 'cosine' and density != 'logit_normal'))
    for process in ('linear', 'cosine', 'variance_preserving', 'shifted', 'logsnr_shifted')
    for density in ('uniform', 'logit_normal', 'mode', 'cosmap'))])
def test_implied_undoes_on_logsnr(process, density, x64):
  density = DENSITIES[density]
  # All rows in one call, each at its own stretch of the times.
  t = np.tile(_at(process), len(SPECTRA))
  each = lambda value: jnp.concatenate([w(v) for (w, *_), v in zip(
      SPECTRA.values(), value.reshape(len(SPECTRA), -1))])
  found = jax.jit(lambda t: weights.implied(
      rows.PROCESSES[process], t, density=density, output=outputs.v, space=outputs.eps,
      weight=Partial(weights.on_logsnr, w=each, density=density)))(t)
  expected = np.concatenate([formula(VALUES) for _, formula, _ in SPECTRA.values()])
  np.testing.assert_allclose(found, expected, rtol=1e-9)


def _network(process):
  """A network for any process: eps from the state of unit variance and log-SNR, none too good."""
  def predict(z, t):
    state, value = process(t), processes.logsnr(process, t)[:, None]
    unit = z / jnp.hypot(*state)[:, None]
    return jnp.sin(2 * unit) + 0.1 * value * unit
  return predict


# 1-D data of two values; noise by Gauss-Hermite and time by Gauss-Legendre nodes.
DATA = np.array([-0.8, 1.3])
NOISE, NOISE_WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
U, U_WEIGHTS = (0.5 * a for a in np.polynomial.legendre.leggauss(60))


def _expected_loss(process, output, density, w):
  """E[loss], by quadrature over time, data and noise."""
  mesh = [a.ravel() for a in np.meshgrid(U + 0.5, DATA, NOISE, indexing='ij')]
  mass = np.prod([a.ravel() for a in np.meshgrid(
      U_WEIGHTS, [0.5, 0.5], NOISE_WEIGHTS / np.sqrt(2 * np.pi), indexing='ij')], axis=0)
  u, x, eps = (jnp.asarray(a) for a in mesh)
  predict = fields.as_output(_network(process), process=process, output=outputs.eps, to=output)
  keys = jax.random.split(jax.random.key(0), len(u))
  loss, _ = jax.jit(lambda keys: losses.matching_loss(
      keys, predict, x[:, None], process=process, output=output, density=density, u=u,
      coupling=lambda keys, x: eps[:, None], space=outputs.eps,
      weight=Partial(weights.on_logsnr, w=w, density=density)))(keys)
  return np.asarray(loss) @ mass


LOW, HIGH = -7.0, 5.0


@pytest.mark.parametrize('w', [
    'sigmoid', *(pytest.param(name, marks=pytest.mark.long) for name in ('elbo', 'sd3'))])
def test_the_loss_depends_on_process_density_and_output_only_by_the_ends_of_log_snr(w, x64):
  w, found = SPECTRA[w][0], {}
  for name, output in (('linear', 'u'), ('cosine', 'v'), ('variance_preserving', 'x'),
                       ('edm', 'edm'), ('shifted', 'eps')):
    process = rows.PROCESSES[name]
    ends = [float(t) for t in _at(name, (HIGH, LOW))]
    density = densities.uniform_on(*ends)
    if name == 'edm':
      # Even in log-SNR, since t spans four decades.
      density = densities.adaptive(process=process, low=LOW, high=HIGH, bins=2)
      density = density.density(density.start)
    found[name] = _expected_loss(process, rows.OUTPUTS[output], density, w)
  values = np.array(list(found.values()))
  assert values.min() > 0.1 and np.ptp(values) < 1e-11 * values.max(), found


def test_another_end_of_log_snr_gives_another_loss(x64):
  ends = lambda high: densities.uniform_on(*(float(t) for t in _at('linear', (high, LOW))))
  nearer, farther = (_expected_loss(processes.linear, outputs.u, ends(high), weights.elbo)
                     for high in (4.0, 5.0))
  assert farther > nearer + 0.1
