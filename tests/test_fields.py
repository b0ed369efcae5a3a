"""Where time, scale, condition and guidance meet a network."""

import re

import jax
from jax import numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial
import numpy as np
import pytest

from eqflow import fields, outputs, processes
from tests import rows


def _network(z, t, condition):
  return z * condition[:, None] + t[:, None]


def _counting(calls):
  def network(z, t, condition):
    calls.append(len(z))
    return _network(z, t, condition)
  return Partial(network)


def test_noise_labels_are_those_of_the_papers():
  t = jnp.array([0.25, 0.5])
  ratio = np.array([0.25, 0.5]) / np.array([0.75, 0.5])
  for label, expected in ((fields.time, t), (fields.none, [0, 0]),
                          (fields.logsnr, -2 * np.log(ratio)),
                          (fields.quarter_log_sigma, np.log(ratio) / 4),
                          (fields.table_index, 1000 * t - 1)):
    np.testing.assert_allclose(label(processes.linear, t), expected, rtol=1e-6, atol=1e-7)


def test_edms_preconditioning_is_conditioned_plus_the_edm_output(x64):
  # D(z; s) = c_skip z + c_out F(c_in z, ln(s)/4) [Karras+ 2206.00364, table 1].
  s, sd = jnp.array([0.1, 2.0]), 0.5
  z = jnp.array([[1.0, -2.0], [0.5, 3.0]])
  def network(z, label, condition):
    return jnp.sin(z) + label[:, None]
  edm = Partial(outputs.edm, sigma_data=sd)
  wrapped = fields.conditioned(Partial(network), processes.edm,
                               scale_input=Partial(fields.unit_variance, sigma_data=sd),
                               label_noise=fields.quarter_log_sigma)
  denoise = fields.as_output(fields.bind(wrapped, None), process=processes.edm, output=edm,
                             to=outputs.x)
  n = np.sqrt(s**2 + sd**2)[:, None]
  f = np.sin(z / n) + np.log(s)[:, None] / 4
  expected = sd**2 / n**2 * z + (s[:, None] * sd / n) * f
  np.testing.assert_allclose(denoise(z, s), expected, rtol=1e-12)


@pytest.mark.parametrize('name', ['linear', 'cosine', 'variance_preserving'])
def test_unit_variance_scales_the_state_to_unit_variance(name):
  process, t = rows.PROCESSES[name], rows.times(name, 9, 'float32')
  state = process(t)
  scale = fields.unit_variance(process, t, sigma_data=0.5)
  np.testing.assert_allclose(scale**2 * (state.eps**2 + 0.25 * state.x**2), 1, rtol=1e-5)


def test_guidance_extrapolates_from_the_null_branch_in_one_call():
  calls = []
  z, t = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([0.1, 0.2])
  condition, null = jnp.array([2.0, 3.0]), jnp.array([10.0, 10.0])
  predict = fields.guided(_counting(calls), condition, null, scale=3.0)
  toward, away = _network(z, t, condition), _network(z, t, null)
  np.testing.assert_allclose(predict(z, t), away + 3 * (toward - away), rtol=1e-6)
  assert calls == [4], f'the network was called on batches of {calls}'


def test_a_scale_of_one_has_no_null_branch():
  calls = []
  z, t, condition = jnp.ones((2, 2)), jnp.zeros(2), jnp.array([2.0, 3.0])
  predict = fields.guided(_counting(calls), condition, jnp.zeros(2), scale=1)
  np.testing.assert_array_equal(predict(z, t), _network(z, t, condition))
  assert calls == [2]


def test_a_scale_per_channel_guides_only_where_it_is_not_one():
  z, t = jnp.ones((2, 4)), jnp.zeros(2)
  condition, null = jnp.array([2.0, 3.0]), jnp.array([5.0, 5.0])
  scale = jnp.array([4.0, 4.0, 4.0, 1.0])
  y = fields.guided(Partial(_network), condition, null, scale=scale)(z, t)
  np.testing.assert_array_equal(y[:, 3], condition)
  np.testing.assert_array_equal(y[:, 0], 5 + 4 * (condition - 5))


def test_guidance_keeps_the_networks_dtype_and_checks_its_scale():
  z, t, condition = jnp.ones((2, 4), jnp.bfloat16), jnp.zeros(2), jnp.array([2.0, 3.0])
  network = lambda z, t, condition: z * condition[:, None].astype(z.dtype)
  for scale in (3.0, [4.0, 4.0, 4.0, 1.0]):
    assert fields.guided(network, condition, condition, scale=scale)(z, t).dtype == jnp.bfloat16
  with pytest.raises(ValueError, match='scale has 5 numbers for 4 channels'):
    fields.guided(network, condition, condition, scale=jnp.ones(5))(z, t)
  with pytest.raises(ValueError, match=r'scale of shape \(2, 1\)'):
    fields.guided(network, condition, condition, scale=jnp.ones((2, 1)))


def test_guidance_on_eight_devices_needs_no_collectives():
  mesh = Mesh(np.asarray(jax.devices()[:8]), ('data',))
  place = lambda a: jax.device_put(a, NamedSharding(mesh, PartitionSpec('data')))
  z, t, condition, null = map(place, (jnp.ones((16, 4)), jnp.ones(16), jnp.ones(16), jnp.zeros(16)))
  @jax.jit
  def run(z, t, condition, null):
    return fields.guided(Partial(_network), condition, null, scale=2.0)(z, t)
  text = run.lower(z, t, condition, null).compile().as_text()
  found = re.findall(r'(all-gather|all-reduce|all-to-all|collective-permute)', text)
  assert not found, f'guidance moves data between devices: {set(found)}'


def test_a_predictor_of_one_output_answers_for_another(x64):
  x, eps = jax.random.normal(jax.random.key(0), (2, 5, 3))
  t = jnp.linspace(0.1, 0.9, 5)
  for source in rows.OUTPUTS.values():
    exact = Partial(lambda z, t, out: out.x[:, None] * x + out.eps[:, None] * eps,
                    out=source(processes.cosine, t))
    state = processes.cosine(t)
    z = state.x[:, None] * x + state.eps[:, None] * eps
    predict = fields.as_output(exact, process=processes.cosine, output=source, to=outputs.x)
    np.testing.assert_allclose(predict(z, t), x, atol=1e-12)


def test_conditions_of_another_shape_than_null_are_refused():
  with pytest.raises(ValueError, match='null'):
    fields.guided(Partial(_network), jnp.ones(2), jnp.zeros(3), scale=2.0)
