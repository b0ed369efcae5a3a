"""The plane: conversions are exact and reciprocal, and reject what has no meaning."""

from fractions import Fraction
import functools
import itertools

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np
import pytest

from eqflow import arrays, outputs, processes
from eqflow.mix import Mix, det, gain, mix, remix
from tests import rows

N = 16
PAIRS = list(itertools.product(rows.OUTPUTS, rows.OUTPUTS))


def _coordinates(process, t):
  """The state and every output at t."""
  return process(t), {key: output(process, t) for key, output in rows.OUTPUTS.items()}


@functools.cache
def _at_times(name, dtype):
  """_coordinates at N times, in this dtype."""
  found = jax.jit(Partial(_coordinates, rows.PROCESSES[name]))(rows.times(name, N, dtype))
  return jax.tree.map(lambda a: jnp.asarray(np.broadcast_to(np.asarray(a, dtype), N)), found)


def _pairs(name, dtype):
  """(state, source, target) at N times, one of PAIRS after the other: a call converts all of them."""
  state, out = _at_times(name, dtype)
  return tuple(Mix(*(jnp.asarray(np.concatenate(numbers)) for numbers in zip(*vectors)))
               for vectors in zip(*((state, out[source], out[target]) for source, target in PAIRS)))


def _repeated(a):
  return jnp.asarray(np.tile(a, len(PAIRS)))


def _exact(a, b, x, eps):
  """a x + b eps in rational arithmetic: the nearest float64 of each element, and what is left of it."""
  exact = [Fraction(float(a)) * Fraction(float(p)) + Fraction(float(b)) * Fraction(float(q))
           for a, b, p, q in zip(a, b, x, eps)]
  nearest = np.array(list(map(float, exact)))
  return nearest, np.array([float(e - Fraction(float(n))) for e, n in zip(exact, nearest)])


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize('name', rows.PROCESSES)
def test_any_output_gives_any_other_within_four_units_in_the_last_place(name, dtype, x64):
  x, eps = map(_repeated, np.random.default_rng(0).normal(size=(2, N)).astype(dtype))
  state, out, to = _pairs(name, dtype)
  found = remix(to, state=state, out=out, z=mix(state, x, eps), y=mix(out, x, eps))
  area = det(state, out)
  a, b = det(to, out) / area, det(state, to) / area
  spread = lambda m: abs(m.x * x) + abs(m.eps * eps)
  scale = abs(a) * spread(state) + abs(b) * spread(out) + spread(to)
  # PAIRS begin with each target once, and go on with the same targets of the next source.
  targets = len(rows.OUTPUTS)
  nearest, left = (np.tile(part, targets) for part in _exact(
      *(np.asarray(a)[:targets * N] for a in (*to, x, eps))))
  error = abs((np.float64(found) - nearest) - left) / scale
  worst = np.reshape(error, (len(PAIRS), -1)).max(1) / np.finfo(dtype).eps
  pair = PAIRS[worst.argmax()]
  assert worst.max() <= 4, f'{pair} on {name} is {worst.max():.2f} units in the last place off'


@pytest.mark.parametrize('name', rows.PROCESSES)
def test_an_output_converted_to_itself_is_untouched(name):
  z, y = np.random.default_rng(0).normal(size=(2, N, 3)).astype(np.float32)

  def converted(state, found):
    return {key: remix(out, state=state, out=out, z=z, y=y) for key, out in found.items()}

  compiled = jax.jit(lambda t: converted(*_coordinates(rows.PROCESSES[name], t)))
  for how, every in (('eagerly', converted(*_at_times(name, 'float32'))),
                     ('under jit', compiled(rows.times(name, N, 'float32')))):
    for key, same in every.items():
      assert jnp.array_equal(same, y), f'{key} on {name} changed {how} when converted to itself'


@pytest.mark.parametrize('name', rows.PROCESSES)
def test_gains_there_and_back_cancel(name, x64):
  state, out, to = _pairs(name, 'float64')
  product = gain(to, state=state, out=out) * gain(out, state=state, out=to)
  np.testing.assert_allclose(product, 1, rtol=1e-12)


@pytest.mark.parametrize('name', rows.PROCESSES)
def test_an_error_in_the_output_is_stretched_by_the_gain(name, x64):
  z, y, error = map(_repeated, np.random.default_rng(1).normal(size=(3, N)))
  state, out, to = _pairs(name, 'float64')
  _, moved = jax.jvp(lambda y: remix(to, state=state, out=out, z=z, y=y), (y,), (error,))
  np.testing.assert_allclose(moved, gain(to, state=state, out=out) * error, rtol=1e-12)


@pytest.mark.parametrize('name', rows.PROCESSES)
def test_state_and_velocity_span_the_falling_log_snr(name, x64):
  process = rows.PROCESSES[name]
  alpha, sigma, area, slope = map(np.asarray, jax.jit(lambda t: (
      *process(t), det(process(t), processes.rate(process, t)), processes.logsnr_rate(process, t)))(
          rows.times(name, 64, 'float64')))
  np.testing.assert_allclose(area, -alpha * sigma * slope / 2, rtol=1e-9)


def test_coordinates_match_the_papers(x64):
  t = np.linspace(0.1, 0.9, 9)
  alpha, sigma, ones = 1 - t, t, np.ones(9)
  n = np.sqrt(sigma**2 + 0.25 * alpha**2)
  c = 4 * np.minimum(1, 5 * t)
  table = {
      'x': (ones, 0 * t), 'eps': (0 * t, ones), 'v': (-sigma, alpha), 'u': (-ones, ones),
      'score': (0 * t, -1 / sigma), 'edm': (sigma / (0.5 * n), -0.5 * alpha / n),
      'equilibrium_truncated': (-c, c),
  }
  _, found = jax.jit(Partial(_coordinates, processes.linear))(t)
  for key, expected in table.items():
    np.testing.assert_allclose(found[key], expected, rtol=1e-12, atol=1e-15, err_msg=key)


def test_edm_of_unit_data_is_minus_v_on_variance_preserving_processes(x64):
  for name in ('cosine', 'variance_preserving'):
    process = rows.PROCESSES[name]
    f, v = jax.jit(lambda t, process=process: (
        outputs.edm(process, t, sigma_data=1.0), outputs.v(process, t)))(rows.times(name, 9, 'float64'))
    np.testing.assert_allclose(f, np.negative(tuple(v)), rtol=1e-12, err_msg=name)


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
