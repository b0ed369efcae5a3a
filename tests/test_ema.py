"""EMAs: the recursion, its warm-up, several at once, and power averages."""

import fractions

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from eqflow import ema, posthoc_ema
from tests.averages import basis, track


def test_each_average_follows_its_own_decay():
  path = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
  emas = ema.init({'w': jnp.asarray(path[0])}, ['fast', 'slow'])
  decays = {'fast': 0.5, 'slow': 0.9}
  rates = {name: 1 - decay for name, decay in decays.items()}
  for p in path[1:]:
    emas = ema.update(emas, {'w': jnp.asarray(p)}, rates)
  for name, decay in decays.items():
    # sum_i (1 - decay) decay^(n - i) p_i, the first with weight decay^n.
    weight = (1 - decay) * decay ** np.arange(49)[::-1]
    expected = decay**49 * path[0] + weight @ path[1:]
    np.testing.assert_allclose(emas[name]['w'], expected, rtol=1e-4, atol=1e-6)


def test_a_leaf_that_is_no_array_is_rejected():
  with pytest.raises(TypeError, match="'text'"):
    ema.init({'a': np.ones(2), 'b': 'text'}, ['0.9'])


def test_warm_up_forgets_the_start():
  held = np.prod([float(ema.warmed(0.999, n)) for n in range(3000)])
  assert held < 1e-6, f'after 3,000 updates {held:.1e} of the start is left'
  assert 0.999**3000 > 0.04, 'which without warm-up would be 5 %'
  assert float(ema.warmed(0.999, 10**7)) == np.float32(0.999)


def test_averages_do_not_alias_the_parameters():
  params = {'w': jnp.ones(2)}
  mean = ema.init(params, ['a'])['a']['w']
  assert mean.unsafe_buffer_pointer() != params['w'].unsafe_buffer_pointer()


def _of_every_kind(i):
  """A tree of leaves i, or the key of i, in every kind of dtype."""
  return {'float8': jnp.float32(i).astype(jnp.float8_e4m3fn), 'bfloat16': jnp.bfloat16(i),
          'float32': jnp.float32(i), 'number': float(i), 'complex64': jnp.complex64(1j * i),
          'int': i, 'int32': jnp.int32(i), 'uint32': jnp.uint32(i), 'uint8': np.uint8(i),
          'bool': jnp.array(i == 10), 'key': jax.random.key(i), 'legacy key': jax.random.PRNGKey(i),
          'keys': jax.random.split(jax.random.key(i), 2)}


# Every way to an average: {name: trees of 10 and 4 -> the average at rate or weight 0.1}.
AVERAGES = {
    'update': lambda first, last: ema.update(ema.init(first, ['a']), last, {'a': 0.1})['a'],
    'update, jitted': lambda first, last: jax.jit(ema.update)(
        ema.init(first, ['a']), last, {'a': 0.1})['a'],
    'power_average': lambda first, last: _tracked_by_power(first, last),
    'reconstruct': lambda first, last: posthoc_ema.reconstruct([first, last], [0.9, 0.1])}


def _tracked_by_power(first, last):
  average = ema.power_average([0.1])
  state = average.update(average.init(first), first, 1000)
  # The number of examples at which the rate is 0.1.
  power = float(ema.power_from_std(0.1))
  return average.update(state, last, round(1000 * 0.9 ** (-1 / (power + 1)))).means['0.1']


@pytest.mark.parametrize('way', AVERAGES)
def test_leaves_that_are_not_floating_take_the_newest_value(way):
  first, last = _of_every_kind(10), _of_every_kind(4)
  found = AVERAGES[way](first, last)
  for name in ('float8', 'bfloat16', 'float32', 'number', 'complex64'):
    factor = 1j if name == 'complex64' else 1
    assert found[name].dtype.itemsize >= 4, name
    np.testing.assert_allclose(found[name], factor * 9.4, rtol=2e-3)   # float8 holds 10 and 4 exactly
  data = lambda a: jax.random.key_data(a) if 'key' in str(getattr(a, 'dtype', '')) else a
  for name in ('int', 'int32', 'uint32', 'uint8', 'bool', 'key', 'legacy key', 'keys'):
    np.testing.assert_array_equal(data(found[name]), data(last[name]), err_msg=name)
    assert jnp.result_type(data(found[name])) == jnp.result_type(data(last[name])), name


def test_the_newest_value_is_one_that_is_used():
  trees = [{'n': np.uint8(i), 'w': np.float32(i)} for i in (1, 2, 3)]
  trees[1]['w'] = np.float32('nan')
  first, second = posthoc_ema.reconstruct(trees, [[1.0, 0.5], [0.0, 0.0], [0.0, 0.5]])
  assert first == {'n': 1, 'w': 1} and second == {'n': 3, 'w': 2}


def bisected(std):
  """The power of a std given as a fraction, to 40 digits, by bisection of exact inequalities."""
  square, low, high = std * std, fractions.Fraction(0), fractions.Fraction(10**6)
  for _ in range(160):
    mid = (low + high) / 2
    # std falls as the power rises.
    wider = (mid + 1) / ((mid + 2) ** 2 * (mid + 3)) > square
    low, high = (mid, high) if wider else (low, mid)
  return float(low)


def test_power_of_std_is_the_root_of_the_cubic():
  for text in ('0.001', '0.01', '0.03', '0.05', '0.1', '0.135', '0.15', '0.2', '0.25', '0.2886'):
    exact = bisected(fractions.Fraction(text))
    assert abs(ema.power_from_std(float(text)) - exact) < 1e-12 * max(exact, 1), text
  assert f'{ema.power_from_std(0.05):.4f} {ema.power_from_std(0.1):.4f}' == '16.9722 6.9372'


def test_std_from_power_inverts_power_from_std():
  stds = np.geomspace(1e-3, 0.28867, 200)
  np.testing.assert_allclose(ema.std_from_power(ema.power_from_std(stds)), stds, rtol=1e-12)
  powers = np.linspace(0.1, 500, 200)
  np.testing.assert_allclose(ema.power_from_std(ema.std_from_power(powers)), powers, rtol=1e-12)
  for power in range(20):   # The variance of Beta(power + 1, 1), the law of t/T.
    a = fractions.Fraction(power + 1)
    np.testing.assert_allclose(ema.std_from_power(power) ** 2, float(a / ((a + 1) ** 2 * (a + 2))),
                               rtol=1e-14)
  assert ema.std_from_power(0) == ema.WIDEST
  assert isinstance(ema.power_from_std(0.1), float) and ema.power_from_std([[0.1]]).shape == (1, 1)


@pytest.mark.parametrize('examples,added', [(64, 64), (128, 64), (10**9, 64), (2**32 - 1, 64),
                                            (2**32 - 1, 2048), (2**31 + 1, 1)])
@pytest.mark.parametrize('std', [0.05, 0.25])
def test_the_rate_is_exact_in_float32(examples, added, std):
  power = float(ema.power_from_std(std))
  found = jax.jit(ema.power_rate)(power, jnp.uint32(examples), jnp.uint32(added))
  assert found.dtype == jnp.float32
  with np.errstate(divide='ignore'):
    exact = -np.expm1((power + 1) * np.log1p(-added / examples))
  np.testing.assert_allclose(found, exact, rtol=1e-6)
  if examples == added:
    assert found == 1
  assert ema.power_rate(power, 0, 0) == 0


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('batch,every', [(64, 1), (256, 1), (64, 4)])
def test_an_average_is_the_power_profile(batch, every):
  profiles = track([0.05, 0.2], 200, batch=batch, every=every, params=basis(200))
  for std, profile in profiles.items():
    # (t/T)^(power + 1) is the part of the profile before t; the start, all 7, is forgotten.
    before = (np.arange(201) / 200) ** (ema.power_from_std(std) + 1)
    np.testing.assert_allclose(profile[-1], np.diff(before), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize('batch,every', [(64, 1), (64, 4), (256, 1), (256, 4)])
def test_the_realized_std_does_not_depend_on_batch_and_interval(batch, every):
  total, stds = 2**20, [0.05, 0.1, 0.2]
  with jax.enable_x64(True):
    moments = track(stds, total // (batch * every), batch=batch, every=every,
                    params=lambda t, k: (t / total) ** jnp.arange(1.0, 3.0))
  for std, (first, second) in ((std, mean[-1]) for std, mean in moments.items()):
    realised = np.sqrt(second - first**2)
    assert abs(realised / std - 1) < 0.01, f'{realised:.4f} instead of {std}'


def test_the_pair_can_be_jitted_with_donated_buffers():
  average = ema.power_average([0.1])
  params = {'w': jnp.arange(3.0)}
  step = jax.jit(average.update, donate_argnums=0)
  state = average.init(params)
  state = step(state, {'w': jnp.ones(3)}, np.uint32(2**31))
  np.testing.assert_array_equal(state.means['0.1']['w'], 1)
  state = step(state, {'w': jnp.zeros(3)}, jnp.uint32(2**31 + 2**30))
  np.testing.assert_allclose(state.means['0.1']['w'], (2 / 3) ** 7.937203937601803, rtol=1e-6)
  again = step(jax.tree.map(jnp.copy, state), {'w': jnp.ones(3)}, np.uint32(2**31 + 2**30))
  np.testing.assert_array_equal(again.means['0.1']['w'], state.means['0.1']['w'])


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_averages_of_low_precision_parameters_move(dtype):
  # A ramp from 0 to 1: its average under (p + 1) t^p is (p + 1)/(p + 2), p = 6.9372 for 0.1.
  average = ema.power_average([0.1])
  ramp = jnp.linspace(0, 1, 3_001).astype(dtype)[1:]
  start = average.init({'w': jnp.zeros((), dtype), 'i': jnp.arange(2)})
  assert start.means['0.1']['i'].dtype == jnp.int32

  def step(state, given):
    count, w = given
    return average.update(state, {'w': w, 'i': jnp.arange(2)}, count), None
  end, _ = jax.lax.scan(step, start, (jnp.arange(1, 3_001), ramp))
  np.testing.assert_allclose(end.means['0.1']['w'], 7.937204 / 8.937204, rtol=1e-3)


def test_a_falling_count_is_rejected_and_gives_nan_under_jit():
  average, params = ema.power_average([0.1]), {'w': jnp.ones(2)}
  state = average.update(average.init(params), params, 64)
  with pytest.raises(ValueError, match='examples=32: .* 64'):
    average.update(state, params, 32)
  assert np.isnan(jax.jit(average.update)(state, params, 32).means['0.1']['w']).all()
  with pytest.raises(ValueError, match=r'params \(1,\) .*\(2,\)'):
    average.update(state, {'w': jnp.ones(1)}, 128)


@pytest.mark.parametrize('call,message', [
    (lambda: ema.power_from_std(1e-160), 'std=1e-160 is outside'),
    (lambda: ema.power_from_std(0.3), r'std=0.3 is outside \(0, 0.288675\)'),
    (lambda: ema.power_from_std([0.1, 0, float('nan')]), 'std=0 and 1 more is outside'),
    (lambda: ema.std_from_power(-0.5), 'power=-0.5'),
    (lambda: ema.power_average([0.1, 0.9]), r'std=0.9 is outside'),
])
def test_bad_input_is_rejected(call, message):
  with pytest.raises(ValueError, match=message):
    call()
