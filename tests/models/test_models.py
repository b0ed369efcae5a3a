"""The networks: published sizes, and the properties that training relies on."""

import functools

import chex
from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from eqflow.models import dit, embed
from eqflow.models.dit import DiT
from eqflow.models.mlp import MLP

# Parameters, positions included, on 32x32x4 latents with 1,000 classes and doubled output.
PUBLISHED = {
    'S/2': 32_963_360, 'B/2': 130_512_416, 'L/2': 458_102_816, 'XL/2': 675_129_632,
    'S/4': 32_945_024, 'B/4': 130_475_648, 'XL/4': 675_074_432, 'XL/8': 675_683_072,
}

NETWORKS = {
    'mlp': (MLP(width=16, depth=2, num_classes=3), (4, 2)),
    'dit': (DiT(patch=2, width=16, depth=1, heads=2, num_classes=3), (4, 4, 6, 3)),
    'dit_variant': (DiT(patch=2, width=16, depth=1, heads=2, num_classes=3, doubled=True,
                        learned_positions=True), (4, 4, 6, 3)),
}
each = pytest.mark.parametrize('name', NETWORKS)


@functools.cache
def _start(name):
  network, shape = NETWORKS[name]
  z = jax.random.normal(jax.random.key(1), shape)
  inputs = z, jnp.linspace(0.1, 0.9, len(z)), jnp.arange(len(z)) % 4
  return network, _init(network, *inputs), inputs


def _trained_alike(name):
  """Params with noise on the learned leaves, so that no gate is zero."""
  network, params, inputs = _start(name)
  rng = np.random.default_rng(0)
  move = lambda p, learned: p + np.float32(0.2 * learned * rng.standard_normal(p.shape))
  return network, jax.tree.map(move, params, embed.trainable(params)), inputs


def _init(network, *inputs):
  # rbg compiles several times faster than threefry.
  return jax.device_get(jax.jit(network.init)(jax.random.key(0, impl='rbg'), *inputs)['params'])


def _apply(network, params, *inputs):
  return np.asarray(_jitted(network)({'params': params}, *inputs))


@functools.cache
def _jitted(network):
  return jax.jit(network.apply)


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.long] * (name not in ('S/2', 'B/4'))) for name in PUBLISHED])
def test_published_sizes(name):
  size, patch = name.split('/')
  network = DiT(patch=int(patch), **dit.SIZES[size], num_classes=1000, doubled=True)
  inputs = jnp.zeros((1, 32, 32, 4)), jnp.zeros(1), jnp.zeros(1, int)
  params = jax.eval_shape(network.init, jax.random.key(0), *inputs)['params']
  tokens = (32 // network.patch) ** 2
  assert embed.count(params) == (PUBLISHED[name], PUBLISHED[name] - tokens * network.width)


@each
def test_the_class_table_has_a_row_for_the_null_label(name):
  _, params, _ = _start(name)
  assert params['classes']['table']['embedding'].shape == (4, 16)


@each
def test_a_network_starts_as_exactly_zero(name):
  network, params, inputs = _start(name)
  y = _apply(network, params, *inputs)
  assert y.shape == inputs[0].shape and not np.any(y)


@pytest.mark.parametrize('name', ['mlp', 'dit'])
def test_final_scale_is_the_std_of_the_last_layer(name):
  network, _, inputs = _start(name)
  params = _init(network.clone(final_scale=0.02), *inputs)
  assert 0.01 < np.std(params['final']['kernel']) < 0.03
  assert np.all(np.std(_apply(network, params, *inputs), axis=tuple(range(1, inputs[0].ndim))) > 0)


def test_published_initialisation():
  # Xavier bounds for linear layers, patches flattened; 0.02 for the class table and the noise MLP.
  network = DiT(patch=2, width=64, depth=1, heads=4, num_classes=500)
  inputs = jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), jnp.zeros(1, int)
  params = _init(network, *inputs)
  for layer, fan in ((params['patch_embed'], 16 + 64), (params['block_0']['qkv'], 64 + 192),
                     (params['block_0']['up'], 64 + 256)):
    bound = np.sqrt(6 / fan)
    assert 0.98 * bound < np.abs(layer['kernel']).max() <= bound and not np.any(layer['bias'])
  for drawn in (params['classes']['table']['embedding'], params['noise']['up']['kernel'],
                params['noise']['out']['kernel']):
    np.testing.assert_allclose(np.std(drawn), 0.02, rtol=0.05)
  for layer in (params['block_0']['modulation'], params['final_modulation'], params['final']):
    assert not np.any(layer['kernel']) and not np.any(layer['bias'])


@each
def test_every_learned_parameter_receives_a_gradient(name):
  network, params, inputs = _trained_alike(name)
  loss = lambda params: jnp.sum(network.apply({'params': params}, *inputs) ** 2)
  grads = jax.device_get(jax.jit(jax.grad(loss))(params))
  for (path, grad), learned in zip(jax.tree_util.tree_leaves_with_path(grads),
                                   jax.tree.leaves(embed.trainable(params)), strict=True):
    assert np.any(grad) == learned, path


@pytest.mark.parametrize('name', ['mlp', 'dit'])
def test_an_energy_can_be_differentiated_twice(name):
  network, params, (z, *conditioning) = _trained_alike(name)
  energy = lambda params, z: jnp.sum(z * network.apply({'params': params}, z, *conditioning))
  loss = lambda params: jnp.sum(jax.grad(energy, argnums=1)(params, z) ** 2)
  grads = jax.jit(jax.grad(loss))(params)
  chex.assert_tree_all_finite(grads)
  assert np.any(grads['final']['kernel'])


@each
def test_noise_conditioning_and_class_change_only_their_example(name):
  network, params, (z, c_noise, condition) = _trained_alike(name)
  y = _apply(network, params, z, c_noise, condition)
  for other in (_apply(network, params, z, c_noise.at[1].add(0.3), condition),
                _apply(network, params, z, c_noise, condition.at[1].set(3))):
    changed = np.abs(other - y).reshape(len(y), -1).max(1) > 1e-3
    np.testing.assert_array_equal(changed, [False, True, False, False])


@each
def test_no_condition_is_the_null_label(name):
  network, params, (z, c_noise, condition) = _trained_alike(name)
  np.testing.assert_array_equal(_apply(network, params, z, c_noise, None),
                                _apply(network, params, z, c_noise, jnp.full_like(condition, 3)))


@each
def test_a_class_beyond_the_table_gives_nan(name):
  network, params, (z, c_noise, condition) = _trained_alike(name)
  assert np.all(np.isnan(_apply(network, params, z, c_noise, condition.at[0].set(4))[0]))


@each
def test_a_network_without_classes_rejects_a_condition(name):
  network, _, inputs = _start(name)
  with pytest.raises(ValueError, match='num_classes=0.*condition=None'):
    jax.eval_shape(network.clone(num_classes=0).init, jax.random.key(0), *inputs)


def test_a_network_without_classes_has_no_class_table():
  network, _, (z, c_noise, _) = _start('dit')
  params = jax.eval_shape(network.clone(num_classes=0).init, jax.random.key(0), z, c_noise)['params']
  assert 'classes' not in params


@pytest.mark.parametrize('shape', [(1, 5, 4, 3), (1, 4, 5, 3)])
def test_an_image_that_is_not_divisible_by_patch_is_rejected(shape):
  network, _, _ = _start('dit')
  with pytest.raises(ValueError, match=f'{shape[1]}x{shape[2]}.*patch=2'):
    network.init(jax.random.key(0), jnp.zeros(shape), jnp.zeros(1), None)


def test_heads_that_do_not_divide_the_width_are_rejected():
  with pytest.raises(ValueError, match='width=16.*heads=3'):
    DiT(patch=2, width=16, depth=1, heads=3).init(
      jax.random.key(0), jnp.zeros((1, 4, 4, 1)), jnp.zeros(1))


@pytest.mark.parametrize('name', ['mlp', 'dit'])
def test_bfloat16_is_close_to_float32_and_params_stay_float32(name):
  network, params, inputs = _trained_alike(name)
  half = network.clone(dtype=jnp.bfloat16)
  full, y = _apply(network, params, *inputs), _apply(half, params, *inputs)
  assert y.dtype == jnp.bfloat16
  assert np.abs(y.astype(np.float32) - full).max() < 0.05 * np.abs(full).max()
  started = jax.eval_shape(half.init, jax.random.key(0), *inputs)['params']
  assert {p.dtype for p in jax.tree.leaves(started)} == {np.dtype('float32')}


def test_remat_gives_the_same_gradients():
  network, params, inputs = _trained_alike('dit')

  def loss(params, network):
    y = network.apply({'params': params}, *inputs)
    return jnp.sum(y ** 2), y

  def results(network):
    traced = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1).trace(params, network)
    return traced.lower().compile()(params), str(traced.jaxpr)

  kept, plain = results(network.clone(remat=False))
  again, recomputed = results(network.clone(remat=True))
  assert 'remat' in recomputed and 'remat' not in plain
  chex.assert_trees_all_close(kept, again, rtol=1e-5, atol=1e-5)


@each
def test_an_example_does_not_depend_on_the_others(name):
  network, params, inputs = _trained_alike(name)
  alone = _apply(network, params, *(a[2:3] for a in inputs))
  np.testing.assert_allclose(alone, _apply(network, params, *inputs)[2:3], rtol=1e-4, atol=1e-5)


def test_gelu_is_its_tanh_form_to_the_second_derivative(x64):
  x = np.linspace(-12, 12, 1001)
  for order, (ours, flax) in enumerate(zip(
      _derivatives(dit.gelu, x), _derivatives(functools.partial(nn.gelu, approximate=True), x))):
    error = abs(ours - flax).max()
    assert error < 1e-12, f'derivative {order} differs by {error:.1e}'


def _derivatives(f, x):
  """f, f' and f'' at x [n]: [3, n]."""
  orders = f, jax.grad(f), jax.grad(jax.grad(f))
  return np.asarray(jax.jit(lambda x: jnp.stack([jax.vmap(each)(x) for each in orders]))(x))


def test_gelu_has_finite_derivatives_where_exp_overflows():
  np.testing.assert_array_equal(_derivatives(dit.gelu, np.float32([-1e4, -50.0, 50.0, 1e4])),
                                [[0, 0, 50, 1e4], [0, 0, 1, 1], [0, 0, 0, 0]])


def test_a_patch_has_the_pixels_that_it_covers():
  z = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
  patches = np.asarray(dit.patchify(jnp.asarray(z), 2))
  assert patches.shape == (2, 6, 12)
  # Row 1 of 2, column 2 of 3.
  np.testing.assert_array_equal(patches[:, 5], z[:, 2:4, 4:6].reshape(2, -1))
  np.testing.assert_array_equal(dit.unpatchify(jnp.asarray(patches), 2, 4, 6), z)


@pytest.mark.parametrize('axis', [1, 2])
def test_without_positions_a_shift_by_a_patch_shifts_the_output(axis):
  network, params, (z, *conditioning) = _trained_alike('dit')
  y = _apply(network, params, jnp.roll(z, 2, axis), *conditioning)
  blind = {**params, 'fixed_positions': jnp.zeros_like(params['fixed_positions'])}
  y_blind = _apply(network, blind, jnp.roll(z, 2, axis), *conditioning)
  expected = jnp.roll(_apply(network, blind, z, *conditioning), 2, axis)
  np.testing.assert_allclose(y_blind, expected, rtol=1e-4, atol=1e-4)
  assert np.abs(y - y_blind).max() > 0.1


def test_positions_distinguish_rows_from_columns():
  table = embed.sincos_positions(3, 5, 8).reshape(3, 5, 8)
  assert table.dtype == np.float32
  for y, x in np.ndindex(3, 5):
    expected = [f(p * w) for p in (x, y) for f in (np.sin, np.cos) for w in (1, 0.01)]
    np.testing.assert_allclose(table[y, x], expected, rtol=1e-6, atol=1e-7)


def test_sinusoids():
  c_noise = jnp.array([0.0, 0.37, 999.0])
  expected = np.array([[f(t * w) for f in (np.cos, np.sin) for w in (1, 0.1, 0.01, 0.001)]
                       for t in np.asarray(c_noise, np.float64)])
  np.testing.assert_allclose(embed.sinusoids(c_noise, 8), expected, atol=2e-5)
  assert embed.sinusoids(c_noise.astype(jnp.bfloat16)).dtype == jnp.float32
  assert embed.sinusoids(c_noise).shape == (3, 256)


def test_embeddings_reject_sizes_that_do_not_divide():
  with pytest.raises(ValueError, match='dim=7'):
    embed.sinusoids(jnp.zeros(1), 7)
  with pytest.raises(ValueError, match='dim=6'):
    embed.sincos_positions(2, 2, 6)


def test_fixed_tables_are_not_trainable():
  _, params, _ = _start('dit')
  mask = embed.trainable(params)
  assert not mask['fixed_positions']
  assert all(jax.tree.leaves({**mask, 'fixed_positions': True}))
  assert embed.count(params)[0] - embed.count(params)[1] == 2 * 3 * 16
  assert all(jax.tree.leaves(embed.trainable(_start('dit_variant')[1])))
  # Anywhere on the path, also inside the state of an optimizer.
  paths = jax.tree_util.tree_leaves_with_path(({'a': {'fixed_x': 1, 'prefixed_x': 2}},))
  assert [embed.is_fixed(path) for path, _ in paths] == [True, False]
