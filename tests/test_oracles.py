"""Oracles are exact: against integrals, against each other, and finite at both ends."""

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np
import pytest

from eqflow import oracles, outputs, processes
from tests import rows

MEANS, STDS, WEIGHTS = np.array([[-2.0], [1.5]]), np.array([0.3, 0.7]), np.array([0.3, 0.7])


def _posterior_mean(z, alpha, sigma):
  """E[x | z] of the mixture by quadrature over x."""
  x = np.linspace(-8, 8, 200_001)
  prior = sum(w / s * np.exp(-((x - m) ** 2) / (2 * s * s))
              for m, s, w in zip(MEANS[:, 0], STDS, WEIGHTS))
  joint = prior * np.exp(-((z - alpha * x) ** 2) / (2 * sigma**2))
  return (x * joint).sum() / joint.sum()


@pytest.mark.parametrize('t', [0.1, 0.5, 0.9])
def test_the_mean_of_a_mixture_matches_quadrature(t, x64):
  z = jnp.array([[-1.0], [0.2], [2.0]])
  predict = Partial(oracles.mixture, process=processes.linear, output=outputs.x, means=MEANS,
                    stds=STDS, weights=WEIGHTS)
  expected = [[_posterior_mean(float(a), 1 - t, t)] for a in z[:, 0]]
  np.testing.assert_allclose(predict(z, jnp.full(3, t)), expected, rtol=1e-8)


@pytest.mark.parametrize('output', rows.OUTPUTS)
def test_every_output_of_an_oracle_lies_on_the_plane(output, x64):
  # x, eps from the oracle satisfy z = alpha x + sigma eps, and the output is their mix.
  process, t = processes.cosine, jnp.array([0.3, 0.6, 0.8])
  z = jax.random.normal(jax.random.key(0), (3, 2))
  mean, cov = jnp.array([1.0, -1.0]), jnp.array([[1.0, 0.4], [0.4, 0.5]])
  ask = lambda out: oracles.gaussian(z, t, process=process, output=out, mean=mean, cov=cov)
  x, eps = ask(outputs.x), ask(outputs.eps)
  state, out = process(t), rows.OUTPUTS[output](process, t)
  np.testing.assert_allclose(state.x[:, None] * x + state.eps[:, None] * eps, z, rtol=1e-12)
  expected = jnp.reshape(out.x, (-1, 1)) * x + jnp.reshape(out.eps, (-1, 1)) * eps
  np.testing.assert_allclose(ask(rows.OUTPUTS[output]), expected, rtol=1e-12)


def test_a_mixture_of_one_component_is_a_gaussian(x64):
  z, t = jax.random.normal(jax.random.key(0), (5, 2)), jnp.linspace(0.1, 0.9, 5)
  mean = jnp.array([0.5, -1.0])
  one = oracles.mixture(z, t, process=processes.linear, output=outputs.u, means=mean[None],
                        stds=jnp.array([0.4]), weights=jnp.array([1.0]))
  same = oracles.gaussian(z, t, process=processes.linear, output=outputs.u, mean=mean,
                          cov=0.16 * jnp.eye(2))
  np.testing.assert_allclose(one, same, rtol=1e-12)


def test_a_finite_set_is_the_limit_of_narrow_mixtures(x64):
  data = jax.random.normal(jax.random.key(1), (7, 2))
  z, t = jax.random.normal(jax.random.key(0), (5, 2)), jnp.linspace(0.2, 0.9, 5)
  exact = oracles.finite(z, t, process=processes.linear, output=outputs.v, data=data)
  narrow = oracles.mixture(z, t, process=processes.linear, output=outputs.v, means=data,
                           stds=jnp.full(7, 1e-6), weights=jnp.full(7, 1 / 7))
  np.testing.assert_allclose(exact, narrow, rtol=1e-8)


@pytest.mark.parametrize('t', [0.0, 1.0])
@pytest.mark.parametrize('output', ['x', 'eps', 'v', 'u'])
def test_oracles_are_finite_at_both_ends(t, output):
  z, t = jnp.array([[0.3, -0.2], [1.0, 2.0]]), jnp.full(2, t)
  given = dict(process=processes.linear, output=rows.OUTPUTS[output])
  for y in (oracles.gaussian(z, t, mean=jnp.zeros(2), cov=jnp.eye(2), **given),
            oracles.mixture(z, t, means=jnp.eye(2), stds=jnp.ones(2), weights=jnp.ones(2), **given),
            oracles.finite(z, t, data=jnp.eye(2), **given)):
    assert jnp.isfinite(y).all()


def test_at_no_noise_the_finite_oracle_returns_the_nearest_record():
  data = jnp.array([[0.0, 0.0], [1.0, 1.0]])
  x = oracles.finite(jnp.array([[0.9, 0.8]]), jnp.zeros(1), process=processes.linear,
                     output=outputs.x, data=data)
  np.testing.assert_array_equal(x, [[1.0, 1.0]])


def test_the_finite_oracle_has_its_derivative_at_ties_too(x64):
  # dE[x|z]/dz = alpha Var[x|z]/sigma^2, here 0.5 0.25/0.25.
  mean = lambda z: oracles.finite(z[None, None], jnp.array([0.5]), process=processes.linear,
                                  output=outputs.x, data=jnp.array([[0.0], [1.0]]))[0, 0]
  np.testing.assert_allclose(jax.grad(mean)(0.25), 0.5, rtol=1e-12)


def test_images_are_records_too():
  data = jnp.arange(24.0).reshape(2, 3, 4, 1)
  x = oracles.finite(data, jnp.full(2, 0.01), process=processes.linear, output=outputs.x, data=data)
  np.testing.assert_allclose(x, data, atol=1e-4)
