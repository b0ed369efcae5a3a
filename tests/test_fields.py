"""Input scale, noise conditioning and class condition of a network."""

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np
import pytest

from eqflow import fields, outputs, processes
from eqflow.mix import mix
from tests import rows


def test_noise_conditioning_matches_the_papers():
  t = jnp.array([0.25, 0.5])
  ratio = np.array([0.25, 0.5]) / np.array([0.75, 0.5])
  for c_noise, expected in ((fields.time, t), (fields.none, [0, 0]),
                          (fields.logsnr, -2 * np.log(ratio)),
                          (fields.quarter_log_sigma, np.log(ratio) / 4),
                          (fields.table_index, 1000 * t - 1)):
    np.testing.assert_allclose(c_noise(processes.linear, t), expected, rtol=1e-6, atol=1e-7)


def test_edms_preconditioning_is_conditioned_plus_the_edm_output(x64):
  # D(z; s) = c_skip z + c_out F(c_in z, ln(s)/4) [Karras+ 2206.00364, table 1].
  s, sd = np.array([0.1, 2.0]), 0.5
  z = np.array([[1.0, -2.0], [0.5, 3.0]])
  def network(z, c_noise, condition):
    return jnp.sin(z) + c_noise[:, None]
  edm = Partial(outputs.edm, sigma_data=sd)
  wrapped = fields.conditioned(Partial(network), processes.edm,
                               scale_input=Partial(fields.unit_variance, sigma_data=sd),
                               c_noise=fields.quarter_log_sigma)
  denoise = fields.as_output(fields.bind(wrapped, None), process=processes.edm, output=edm,
                             to=outputs.x)
  n = np.sqrt(s**2 + sd**2)[:, None]
  f = np.sin(z / n) + np.log(s)[:, None] / 4
  expected = sd**2 / n**2 * z + (s[:, None] * sd / n) * f
  np.testing.assert_allclose(jax.jit(denoise)(z, s), expected, rtol=1e-12)


@pytest.mark.parametrize('name', ['linear', 'cosine', 'variance_preserving'])
def test_unit_variance_scales_the_state_to_unit_variance(name):
  process, t = rows.PROCESSES[name], rows.times(name, 9, 'float32')
  alpha, sigma, scale = map(np.asarray, jax.jit(
      lambda t: (*process(t), fields.unit_variance(process, t, sigma_data=0.5)))(t))
  np.testing.assert_allclose(scale**2 * (sigma**2 + 0.25 * alpha**2), 1, rtol=1e-5)


def test_a_predictor_of_one_output_is_converted_to_any_other(x64):
  x, eps = np.random.default_rng(0).normal(size=(2, 5, 3))
  t = np.linspace(0.1, 0.9, 5)

  @jax.jit
  def converted(t):
    found = {}
    for name, source in rows.OUTPUTS.items():
      exact = lambda z, t: mix(source(processes.cosine, t), x, eps)
      predict = fields.as_output(exact, process=processes.cosine, output=source, to=outputs.x)
      found[name] = predict(mix(processes.cosine(t), x, eps), t)
    return found

  for name, found in converted(t).items():
    np.testing.assert_allclose(found, x, atol=1e-12, err_msg=name)
