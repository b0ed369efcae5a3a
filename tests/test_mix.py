"""The plane: conversions are exact and reciprocal, and reject what has no meaning."""

from fractions import Fraction
import itertools

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np
import pytest

from eqflow import arrays, outputs, processes
from eqflow.mix import Mix, det, gain, mix, remix
from tests import rows

PAIRS = list(itertools.product(rows.OUTPUTS, rows.OUTPUTS))


def _pairs(coordinates, t):
  """(source, target) of PAIRS, one pair after the other along [b]: a call converts all of them."""
  whole = lambda number: jnp.broadcast_to(jnp.asarray(number, t.dtype), t.shape)
  return tuple(Mix(*(jnp.concatenate([whole(number) for number in numbers]) for numbers in zip(*(
      coordinates[name] for name in names)))) for names in zip(*PAIRS))


def _repeated(tree):
  return jax.tree.map(lambda leaf: jnp.tile(leaf, len(PAIRS)), tree)


def _exact(coordinates, x, eps):
  """a x + b eps in rational arithmetic, element by element."""
  return [Fraction(float(a)) * Fraction(float(p)) + Fraction(float(b)) * Fraction(float(q))
          for a, b, p, q in zip(*map(np.asarray, (*coordinates, x, eps)))]


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize('name', rows.PROCESSES)
def test_any_output_gives_any_other_within_four_units_in_the_last_place(name, dtype, x64):
  process, t = rows.PROCESSES[name], rows.times(name, 16, dtype)
  rng = np.random.default_rng(0)
  x, eps = (_repeated(jnp.asarray(rng.normal(size=t.shape), dtype)) for _ in range(2))
  out, to = _pairs({key: output(process, t) for key, output in rows.OUTPUTS.items()}, t)
  state = _repeated(process(t))
  found = remix(to, state=state, out=out, z=mix(state, x, eps), y=mix(out, x, eps))
  area = det(state, out)
  a, b = det(to, out) / area, det(state, to) / area
  spread = lambda m: abs(m.x * x) + abs(m.eps * eps)
  scale = abs(a) * spread(state) + abs(b) * spread(out) + spread(to)
  error = [float(abs(Fraction(float(f)) - e) / Fraction(float(s)))
           for f, e, s in zip(found, _exact(to, x, eps), scale)]
  worst = np.reshape(error, (len(PAIRS), -1)).max(1) / np.finfo(dtype).eps
  pair = PAIRS[worst.argmax()]
  assert worst.max() <= 4, f'{pair} on {name} is {worst.max():.2f} units in the last place off'


@pytest.mark.parametrize('name', rows.PROCESSES)
def test_an_output_converted_to_itself_is_untouched(name):
  process, t = rows.PROCESSES[name], rows.times(name, 64, 'float32')
  z, y = jax.random.normal(jax.random.key(0), (2, 64, 3))

  def converted(outputs):
    found = {key: output(process, t) for key, output in outputs.items()}
    return {key: remix(out, state=process(t), out=out, z=z, y=y) for key, out in found.items()}

  for how, convert in (('eagerly', converted), ('under jit', jax.jit(converted))):
    for key, same in convert(arrays.pytree(rows.OUTPUTS)).items():
      assert jnp.array_equal(same, y), f'{key} on {name} changed {how} when converted to itself'


@pytest.mark.parametrize('name', rows.PROCESSES)
def test_gains_there_and_back_cancel(name, x64):
  process, t = rows.PROCESSES[name], rows.times(name, 64, 'float64')
  out, to = _pairs({key: output(process, t) for key, output in rows.OUTPUTS.items()}, t)
  state = _repeated(process(t))
  product = gain(to, state=state, out=out) * gain(out, state=state, out=to)
  np.testing.assert_allclose(product, 1, rtol=1e-12)


@pytest.mark.parametrize('name', rows.PROCESSES)
def test_an_error_in_the_output_is_stretched_by_the_gain(name, x64):
  process, t = rows.PROCESSES[name], rows.times(name, 16, 'float64')
  z, y, error = map(_repeated, jax.random.normal(jax.random.key(1), (3, 16)))
  out, to = _pairs({key: output(process, t) for key, output in rows.OUTPUTS.items()}, t)
  state = _repeated(process(t))
  _, moved = jax.jvp(lambda y: remix(to, state=state, out=out, z=z, y=y), (y,), (error,))
  np.testing.assert_allclose(moved, gain(to, state=state, out=out) * error, rtol=1e-12)


@pytest.mark.parametrize('name', rows.PROCESSES)
def test_state_and_velocity_span_the_falling_log_snr(name, x64):
  process, t = rows.PROCESSES[name], rows.times(name, 64, 'float64')
  state, u = process(t), processes.rate(process, t)
  expected = -state.x * state.eps * processes.logsnr_rate(process, t) / 2
  np.testing.assert_allclose(det(state, u), expected, rtol=1e-9)


def test_coordinates_match_the_papers(x64):
  t = jnp.linspace(0.1, 0.9, 9)
  alpha, sigma, ones = 1 - t, t, jnp.ones(9)
  n = jnp.sqrt(sigma**2 + 0.25 * alpha**2)
  c = 4 * jnp.minimum(1, 5 * t)
  table = {
      'x': (ones, 0 * t), 'eps': (0 * t, ones), 'v': (-sigma, alpha), 'u': (-ones, ones),
      'score': (0 * t, -1 / sigma), 'edm': (sigma / (0.5 * n), -0.5 * alpha / n),
      'equilibrium_truncated': (-c, c),
  }
  for key, expected in table.items():
    found = rows.OUTPUTS[key](processes.linear, t)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15, err_msg=key)


def test_edm_of_unit_data_is_minus_v_on_variance_preserving_processes(x64):
  for name in ('cosine', 'variance_preserving'):
    process, t = rows.PROCESSES[name], rows.times(name, 9, 'float64')
    f = Partial(outputs.edm, sigma_data=1.0)(process, t)
    v = outputs.v(process, t)
    np.testing.assert_allclose(f, (-v.x, -v.eps), rtol=1e-12, err_msg=name)


def test_trees_of_any_structure_are_data():
  z = {'image': jnp.ones((2, 4, 4, 1)), 'scale': (jnp.ones(2, jnp.bfloat16),)}
  state = processes.linear(jnp.array([0.25, 0.5]))
  noisy = mix(state, z, jax.tree.map(jnp.zeros_like, z))
  assert jax.tree.structure(noisy) == jax.tree.structure(z)
  assert noisy['scale'][0].dtype == jnp.bfloat16, 'the result has the dtype of the first tree'
  np.testing.assert_array_equal(noisy['image'][:, 0, 0, 0], [0.75, 0.5])


def test_coefficients_are_not_rounded_to_low_precision_data():
  x = jnp.full((1, 1), 256.0, jnp.bfloat16)
  # 1/257 is not a bfloat16: rounded first, the product would be 0.99609.
  product = mix(Mix(jnp.float32(1 / 256.5), jnp.float32(0)), x, x)
  assert product[0, 0] == jnp.bfloat16(256 / 256.5)


def test_noise_depends_on_the_key_and_the_leaf_only():
  keys = jax.random.split(jax.random.key(0), 500)
  noise = arrays.noise_like(keys, {'a': jnp.zeros((500, 2)), 'b': jnp.zeros((500, 2))})
  assert abs(np.corrcoef(noise['a'].ravel(), noise['b'].ravel())[0, 1]) < 0.15
  assert abs(np.std(noise['a']) - 1) < 0.1 and len(np.unique(noise['a'])) > 990
  alone = arrays.noise_like(keys[3:5], {'a': jnp.zeros((2, 2)), 'b': jnp.zeros((2, 2))})
  np.testing.assert_array_equal(alone['b'], noise['b'][3:5])


def test_norms_of_low_precision_data_are_summed_in_float32():
  # 1 + 1 + ... stops at 256 in bfloat16.
  assert arrays.square_norm(jnp.ones((1, 1000), jnp.bfloat16))[0] == 1000


def test_decays_match_the_paper():
  gamma = jnp.array([0.0, 0.4, 0.8, 0.9, 1.0])
  expected = {'constant': [2, 2, 2, 2, 2], 'linear': [1, 0.6, 0.2, 0.1, 0],
              'truncated': [4, 4, 4, 2, 0], 'piecewise': [5.6, 4.8, 4, 2, 0]}
  for name, values in expected.items():
    np.testing.assert_allclose(rows.DECAYS[name](gamma), values, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize('operation', [
    lambda m: m + m, lambda m: m * 2, lambda m: 2 * m, lambda m: (1, 2) + m,
    lambda m: np.float64(2) * m])
def test_a_mix_cannot_be_added_or_repeated_as_a_tuple(operation):
  with pytest.raises(TypeError, match='a Mix is not|unsupported operand'):
    operation(Mix(1.0, 2.0))


def test_shapes_that_would_broadcast_are_rejected():
  z = jnp.zeros((64, 2))
  state, out = processes.linear(0.5), outputs.v(processes.linear, 0.5)
  with pytest.raises(ValueError, match=r'predict returned \(64, 1\) for z \(64, 2\)'):
    remix(out, state=state, out=out, z=z, y=jnp.zeros((64, 1)))
  with pytest.raises(ValueError, match='coefficient has shape'):
    mix(processes.linear(jnp.full(64, 0.5)), jnp.zeros((1, 2)), jnp.zeros((1, 2)))


def test_integer_data_are_rejected():
  x = jnp.zeros((4, 2), jnp.int32)
  with pytest.raises(TypeError, match=r'data is int32'):
    mix(Mix(1.0, 1.0), x, x)
