"""Oracles are exact: against integrals, against each other, and finite at both ends."""

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np
import pytest

from eqflow import oracles, outputs, processes
from tests import rows

MEANS, STDS, WEIGHTS = np.array([[-2.0], [1.5]]), np.array([0.3, 0.7]), np.array([0.3, 0.7])

MIXTURE = jax.jit(Partial(oracles.mixture, process=processes.linear, output=outputs.x, means=MEANS,
                          stds=STDS, weights=WEIGHTS))


def _posterior_mean(z, alpha, sigma):
  """E[x | z] of the mixture by quadrature over x."""
  x = np.linspace(-8, 8, 200_001)
  prior = sum(w / s * np.exp(-((x - m) ** 2) / (2 * s * s))
              for m, s, w in zip(MEANS[:, 0], STDS, WEIGHTS))
  joint = prior * np.exp(-((z - alpha * x) ** 2) / (2 * sigma**2))
  return (x * joint).sum() / joint.sum()


@pytest.mark.parametrize('t', [0.1, 0.5, 0.9])
def test_the_mean_of_a_mixture_matches_quadrature(t, x64):
  z = np.array([[-1.0], [0.2], [2.0]])
  expected = [[_posterior_mean(a, 1 - t, t)] for a in z[:, 0]]
  np.testing.assert_allclose(MIXTURE(z, np.full(3, t)), expected, rtol=1e-8)


@pytest.mark.parametrize('output', rows.OUTPUTS)
def test_every_output_of_an_oracle_lies_on_the_plane(output, x64):
  # x, eps from the oracle satisfy z = alpha x + sigma eps, and the output is their mix.
  process, t = processes.cosine, np.array([0.3, 0.6, 0.8])
  z = np.random.default_rng(0).normal(size=(3, 2))
  mean, cov = np.array([1.0, -1.0]), np.array([[1.0, 0.4], [0.4, 0.5]])

  @jax.jit
  def asked(z, t):
    ask = lambda out: oracles.gaussian(z, t, process=process, output=out, mean=mean, cov=cov).T
    out = rows.OUTPUTS[output]
    return process(t), out(process, t), ask(outputs.x), ask(outputs.eps), ask(out)

  state, out, x, eps, found = asked(z, t)
  np.testing.assert_allclose(state.x * x + state.eps * eps, z.T, rtol=1e-12)
  np.testing.assert_allclose(found, out.x * x + out.eps * eps, rtol=1e-12)


def test_a_mixture_of_one_component_is_a_gaussian(x64):
  z, t = np.random.default_rng(0).normal(size=(5, 2)), np.linspace(0.1, 0.9, 5)
  mean, given = np.array([0.5, -1.0]), dict(process=processes.linear, output=outputs.u)
  one, same = jax.jit(lambda z, t: (
      oracles.mixture(z, t, means=mean[None], stds=np.array([0.4]), weights=np.array([1.0]), **given),
      oracles.gaussian(z, t, mean=mean, cov=0.16 * np.eye(2), **given)))(z, t)
  np.testing.assert_allclose(one, same, rtol=1e-12)


def test_a_finite_set_is_the_limit_of_narrow_mixtures(x64):
  rng, given = np.random.default_rng(0), dict(process=processes.linear, output=outputs.v)
  data, z, t = rng.normal(size=(7, 2)), rng.normal(size=(5, 2)), np.linspace(0.2, 0.9, 5)
  narrow = dict(means=data, stds=np.full(7, 1e-6), weights=np.full(7, 1 / 7))
  exact, near = jax.jit(lambda z, t: (oracles.finite(z, t, data=data, **given),
                                      oracles.mixture(z, t, **narrow, **given)))(z, t)
  np.testing.assert_allclose(exact, near, rtol=1e-8)


@pytest.mark.parametrize('output', ['x', 'eps', 'v', 'u'])
def test_oracles_are_finite_at_both_ends(output):
  z = np.array([[0.3, -0.2], [1.0, 2.0]])
  given = dict(process=processes.linear, output=rows.OUTPUTS[output])
  ask = jax.jit(lambda z, t: (
      oracles.gaussian(z, t, mean=np.zeros(2), cov=np.eye(2), **given),
      oracles.mixture(z, t, means=np.eye(2), stds=np.ones(2), weights=np.ones(2), **given),
      oracles.finite(z, t, data=np.eye(2), **given)))
  for t in (0.0, 1.0):
    assert np.isfinite(ask(z, np.full(2, t))).all(), f'at t={t}'


def test_at_no_noise_the_finite_oracle_returns_the_nearest_record():
  nearest = jax.jit(Partial(oracles.finite, process=processes.linear, output=outputs.x,
                            data=np.array([[0.0, 0.0], [1.0, 1.0]])))
  np.testing.assert_array_equal(nearest(np.array([[0.9, 0.8]]), np.zeros(1)), [[1.0, 1.0]])


def test_the_finite_oracle_has_its_derivative_at_ties_too(x64):
  # dE[x|z]/dz = alpha Var[x|z]/sigma^2, here 0.5 0.25/0.25.
  mean = lambda z: oracles.finite(z[None, None], jnp.array([0.5]), process=processes.linear,
                                  output=outputs.x, data=jnp.array([[0.0], [1.0]]))[0, 0]
  np.testing.assert_allclose(jax.jit(jax.grad(mean))(0.25), 0.5, rtol=1e-12)


def test_images_are_records_too():
  data = np.arange(24.0).reshape(2, 3, 4, 1)
  mean = jax.jit(Partial(oracles.finite, process=processes.linear, output=outputs.x, data=data))
  np.testing.assert_allclose(mean(data, np.full(2, 0.01)), data, atol=1e-4)
