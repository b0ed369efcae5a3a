"""Guidance: extrapolation, rescaling, composition and its interval."""

import re

import jax
from jax import numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial
import numpy as np
import pytest

from eqflow import fields, guidance, outputs, processes, samplers
from tests import rows


def _network(z, t, condition):
  return z * condition[:, None] + t[:, None]


def _counting(calls):
  def network(z, t, condition):
    calls.append(len(z))
    return _network(z, t, condition)
  return Partial(network)


def test_guidance_extrapolates_from_the_null_branch_in_one_call():
  calls = []
  z, t = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([0.1, 0.2])
  condition, null = np.array([2.0, 3.0]), np.array([10.0, 10.0])
  predict = guidance.guided(_counting(calls), condition, null, scale=3.0)
  toward, away = _network(z, t, condition), _network(z, t, null)
  np.testing.assert_allclose(jax.jit(predict)(z, t), away + 3 * (toward - away), rtol=1e-6)
  assert calls == [4], f'the network was called on batches of {calls}'


def test_a_scale_of_one_has_no_null_branch():
  calls = []
  z, t, condition = jnp.ones((2, 2)), jnp.zeros(2), jnp.array([2.0, 3.0])
  predict = guidance.guided(_counting(calls), condition, jnp.zeros(2), scale=1)
  np.testing.assert_array_equal(predict(z, t), _network(z, t, condition))
  assert calls == [2]


def test_a_scale_per_channel_guides_only_where_it_is_not_one():
  condition, null = np.array([2.0, 3.0]), np.array([5.0, 5.0])
  scale = np.array([[4.0, 4.0, 4.0, 1.0]])
  predict = guidance.guided(Partial(_network), condition, null, scale=scale)
  y = jax.jit(predict)(np.ones((2, 4)), np.zeros(2))
  np.testing.assert_array_equal(y[:, 3], condition)
  np.testing.assert_array_equal(y[:, 0], 5 + 4 * (condition - 5))


def test_guidance_keeps_the_networks_dtype_and_checks_its_scale():
  z, t, condition = jnp.ones((2, 4), jnp.bfloat16), jnp.zeros(2), jnp.array([2.0, 3.0])
  network = lambda z, t, condition: z * condition[:, None].astype(z.dtype)
  for scale in (3.0, jnp.array([[4.0, 4.0, 4.0, 1.0]])):
    predict = guidance.guided(network, condition, condition, scale=scale)
    assert jax.eval_shape(predict, z, t).dtype == jnp.bfloat16


Y = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[5.0, 7.0], [11.0, 13.0]])
GUIDES = {
    'guided': lambda to, away, scale: guidance.guided(lambda z, t, c: c, to, away, scale=scale),
    'autoguided': lambda to, away, scale: guidance.autoguided(
        _returning(to), _returning(away), scale=scale),
    'composed': lambda to, away, scale: guidance.composed(_returning(away), [_returning(to)], [scale]),
    # y_away + scale (y_to - y_away), so that one expectation holds for all.
    'added': lambda to, away, scale: guidance.added(
        [_returning(to), _returning(away)], [scale, 1 - jnp.asarray(scale, jnp.float32)])}


@pytest.mark.parametrize('name', GUIDES)
def test_a_scale_has_one_meaning_in_every_function(name):
  z, t, (to, away) = jnp.zeros((2, 2)), jnp.zeros(2), map(jnp.float32, Y)
  by = lambda scale: GUIDES[name](to, away, scale)(z, t)
  for scale, expanded in ((3.0, 3.0), (np.array([3.0, 5.0]), [[3.0], [5.0]]),
                          (np.array([[3.0], [5.0]]), [[3.0], [5.0]]), (np.array([2.0]), 2.0),
                          (np.array([[3.0, 5.0]]), [[3.0, 5.0]])):
    np.testing.assert_array_equal(by(scale), Y[1] + np.array(expanded) * (Y[0] - Y[1]), str(scale))
  for wrong in (np.ones(3), np.ones((3, 1)), np.ones((1, 3)), np.ones((1, 1, 2))):
    message = re.escape(f'scale has shape {wrong.shape} for predictions (2, 2)')
    with pytest.raises(ValueError, match=message):
      by(wrong)


@pytest.mark.parametrize('dtype', [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize('name', GUIDES)
def test_a_scale_of_any_type_gives_the_same_and_never_overflows_on_the_way(name, dtype):
  # The difference, 2 x 0.9 times the largest number, overflows; the result, 0.9 of it, does not.
  most = 0.9 * float(jnp.finfo(dtype).max)
  if dtype != jnp.float16:
    most = 7.0   # bfloat16 and float32 have one range.
  to, away = jnp.array([[most], [-most]], dtype), jnp.array([[-most], [most]], dtype)
  z, t = jnp.zeros((2, 1), dtype), jnp.zeros(2)
  kinds = (0.5, np.float32(0.5), np.float64(0.5), np.array(0.5), jnp.float16(0.5), jnp.bfloat16(0.5),
           jnp.float32(0.5), jnp.full(2, 0.5, jnp.float16), jnp.full((1, 1), 0.5))
  found = [GUIDES[name](to, away, scale)(z, t) for scale in kinds]
  for y in [*found, jax.jit(lambda scale: GUIDES[name](to, away, scale)(z, t))(0.5)]:
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, np.zeros((2, 1)))
  for scale in (1, 1.0, np.float16(1), np.array(1), jnp.float32(1), jnp.ones(2, dtype)):
    np.testing.assert_array_equal(GUIDES[name](to, away, scale)(z, t), to)


def test_guidance_on_eight_devices_needs_no_collectives():
  mesh = Mesh(np.asarray(jax.devices()[:8]), ('data',))
  place = lambda a: jax.device_put(a, NamedSharding(mesh, PartitionSpec('data')))
  z, t, condition, null = map(place, (jnp.ones((16, 4)), jnp.ones(16), jnp.ones(16), jnp.zeros(16)))
  @jax.jit
  def run(z, t, condition, null):
    return guidance.guided(Partial(_network), condition, null, scale=2.0, rescale=0.7)(z, t)
  text = run.lower(z, t, condition, null).compile().as_text()
  found = re.findall(r'(all-gather|all-reduce|all-to-all|collective-permute)', text)
  assert not found, f'guidance moves data between devices: {set(found)}'


def test_a_scale_that_is_not_a_number_is_rejected():
  with pytest.raises(ValueError, match='scale=nan'):
    guidance.added([lambda z, t, condition: z], [np.nan])


def test_conditions_of_another_shape_than_null_are_rejected():
  with pytest.raises(ValueError, match='null'):
    guidance.guided(Partial(_network), jnp.ones(2), jnp.zeros(3), scale=2.0)


def _published_rescaling(positive, negative, w, phi):
  """x_cfg = neg + w (pos - neg); phi x_cfg std(pos)/std(x_cfg) + (1 - phi) x_cfg, per example."""
  out = []
  for pos, neg in zip(np.float64(positive), np.float64(negative)):
    cfg = neg + w * (pos - neg)
    out.append(phi * cfg * pos.std() / cfg.std() + (1 - phi) * cfg)
  return np.stack(out)


def _returning(y):
  return Partial(lambda z, t, y: y, y=y)


def _by_condition(z, t, condition):
  # The network returns its condition: [b, d], or [2b, d] with the null branch.
  return condition


def test_rescaling_matches_the_zero_terminal_snr_paper():
  # Lin+ 2305.08891, section 3.4.
  rng = np.random.default_rng(0)
  positive, negative = (jnp.asarray(rng.normal(0.5, std, (3, 4, 2)), jnp.float32) for std in (1, 3))
  z, t = jnp.zeros((3, 4, 2)), jnp.zeros(3)
  expected = _published_rescaling(positive, negative, 7.5, 0.7)
  by_condition = guidance.guided(_by_condition, positive, negative, scale=7.5, rescale=0.7)
  by_network = guidance.autoguided(_returning(positive), _returning(negative), scale=7.5, rescale=0.7)
  for predict in (by_condition, by_network):
    np.testing.assert_allclose(jax.jit(predict)(z, t), expected, rtol=1e-5, atol=1e-6)
  # The std of a tree is over all its leaves.
  split = lambda y: {'a': y[:, :1], 'b': y[:, 1:]}
  rescaled = jax.jit(lambda y, like: guidance.rescaled(y, like, 1.0))
  found, whole = rescaled(split(negative), split(positive)), rescaled(negative, positive)
  np.testing.assert_allclose(np.concatenate([found['a'], found['b']], axis=1), whole, rtol=1e-6)
  np.testing.assert_allclose(np.std(whole, axis=(1, 2)), np.std(positive, axis=(1, 2)), rtol=1e-6)


def test_a_constant_is_not_rescaled_and_phi_is_between_0_and_1():
  y = jnp.array([[2.0, 2.0], [0.0, 0.0]])
  np.testing.assert_array_equal(guidance.rescaled(y, jnp.array([[1.0, 7.0], [0.0, 5.0]]), 1.0), y)
  for phi in (-0.1, 1.5, np.array(2.0), jnp.float32(-1), np.array([0.5, 1.5]), float('nan')):
    with pytest.raises(ValueError, match=re.escape(f'rescale={phi}:')):
      guidance.guided(_by_condition, y, y, scale=2.0, rescale=phi)


def _gaussian(z, t, condition, *, output):
  """E[output | z] on the cosine process for x ~ N(condition, 0.3^2)."""
  alpha, sigma = (c[:, None] for c in processes.cosine(t))
  offset = (z - alpha * condition) / (0.09 * alpha**2 + sigma**2)
  out = output(processes.cosine, t)
  return out.x[:, None] * (condition + 0.09 * alpha * offset) + out.eps[:, None] * sigma * offset


def test_guidance_gives_the_same_sample_for_every_output(x64):
  # The weights of guidance sum to one, and conversions between outputs are affine.
  condition, null, z = jax.random.normal(jax.random.key(0), (3, 4, 2))
  grid = np.linspace(0.98, 0.02, 9)
  samples = {}
  for name in ('x', 'eps', 'v', 'u', 'score'):
    network = Partial(_gaussian, output=rows.OUTPUTS[name])
    toward, away = (fields.bind(network, c) for c in (condition, null))
    for how, predict in {
        'guided': guidance.guided(network, condition, null, scale=3.0),
        'autoguided': guidance.autoguided(toward, away, scale=3.0),
        'composed': guidance.composed(away, [toward], [3.0]),
        'composed of halves': guidance.composed(away, [toward, toward], [1.0, 2.0])}.items():
      solver = samplers.ddim(processes.cosine, rows.OUTPUTS[name])
      samples[name, how] = samplers.sample(solver, predict, z, grid)
  first = samples['x', 'guided']
  for key, sample in samples.items():
    np.testing.assert_allclose(sample, first, rtol=1e-12, atol=1e-12, err_msg=str(key))
  unguided = samplers.sample(samplers.ddim(processes.cosine, outputs.u), toward, z, grid)
  assert abs(first - unguided).max() > 0.5


def test_a_composition_adds_the_difference_of_each_condition():
  z, t = jnp.zeros((2, 2)), jnp.zeros(2)
  base, first, second = (_returning(jnp.full((2, 2), y)) for y in (1.0, 2.0, 5.0))
  found = guidance.composed(base, [first, second], [3.0, jnp.array([[0.5, 0.0]])])(z, t)
  np.testing.assert_array_equal(found, [[1 + 3 + 2, 1 + 3]] * 2)
  with pytest.raises(ValueError, match='1 scales for 2 predictors'):
    guidance.composed(base, [first, second], [1.0])


def _calls(*names):
  """Predictors that return their number in `names`, and the list that their evaluations append to."""
  calls = []
  def predict(z, t, i):
    jax.debug.callback(lambda: calls.append(names[i]))
    return jnp.full_like(z, i)
  return calls, [(lambda z, t, i=i: predict(z, t, i)) for i in range(len(names))]


def test_weights_that_sum_to_one_do_not_evaluate_the_base():
  calls, (weak, strong, other) = _calls('weak', 'strong', 'other')
  z, t = jnp.zeros((2, 2)), jnp.zeros(2)
  np.testing.assert_array_equal(guidance.autoguided(strong, weak, scale=1)(z, t), 1)
  np.testing.assert_array_equal(guidance.composed(weak, [strong, other], [0.5, 0.5])(z, t), 1.5)
  jax.effects_barrier()
  assert sorted(calls) == ['other', 'strong', 'strong']


INTERVALS = [
    # On the cosine process sigma/alpha = tan(pi t/2), and log-SNR is -2 log of it.
    (fields.time, 0.25, 0.5, lambda t: t),
    (processes.noise_to_signal, 0.5, np.inf, lambda t: np.tan(np.pi / 2 * t)),
    (fields.logsnr, -np.inf, -1.0, lambda t: -2 * np.log(np.tan(np.pi / 2 * t))),
    (fields.logsnr, 20.0, 30.0, lambda t: -2 * np.log(np.tan(np.pi / 2 * t))),
]


@pytest.mark.parametrize('measure,low,high,value', INTERVALS)
def test_guidance_is_free_outside_its_interval(measure, low, high, value):
  calls, (outside, inside) = _calls('outside', 'inside')
  predict = guidance.on_interval(inside, outside, process=processes.cosine, low=low, high=high,
                               measure=measure)
  times = np.linspace(0.99, 0.01, 12)
  samplers.sample(samplers.ddim(processes.cosine, outputs.v), predict, jnp.ones((2, 2)), times)
  jax.effects_barrier()
  within = (low <= value(times[:-1])) & (value(times[:-1]) <= high)
  assert calls.count('inside') == within.sum() and calls.count('outside') == (~within).sum()


def test_an_interval_applies_to_each_example_and_includes_its_ends():
  calls, (outside, inside) = _calls('outside', 'inside')
  predict = guidance.on_interval(inside, outside, process=processes.linear, low=0.25, high=0.5,
                               measure=fields.time)
  t = jnp.array([0.2, 0.25, 0.4, 0.5, 0.6])
  y = jax.jit(predict)(jnp.ones((5, 3)), t)
  np.testing.assert_array_equal(y, np.array([0, 1, 1, 1, 0])[:, None] * np.ones(3))
  jax.effects_barrier()
  assert sorted(calls) == ['inside', 'outside']
  for low, high in ((0.5, 0.25), (float('nan'), 1.0)):
    with pytest.raises(ValueError, match='is empty'):
      guidance.on_interval(inside, outside, process=processes.linear, low=low, high=high,
                         measure=fields.time)
