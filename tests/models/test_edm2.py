"""EDM2's network: unit magnitudes, published numbers, the golden example, rejected inputs."""

import chex
from flax import traverse_util
import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np
import pytest
from safetensors import numpy as safetensors

from eqflow import fields, interop, outputs, processes
from eqflow.models import edm2, embed, magnitude
from tests import golden

N = 4096
GOLDEN = dict(img_resolution=16, img_channels=3, label_dim=10, model_channels=32, channel_mult=[1, 2],
              num_blocks=1, attn_resolutions=[8])
TINY = edm2.EDM2(width=16, multipliers=(1, 2), blocks=1, attention=(4,), head_width=16, num_classes=3)
Z = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
LABEL = jnp.array([0.3, -0.7])


def _params(module, *given, gain=0.0):
  """Params distributed as by init, from numpy: compiling init takes longer than all tests here."""
  rng = np.random.default_rng(0)

  def leaf(path, a):
    if not a.ndim:
      return jnp.float32(gain)
    draw = rng.random if path[-1].key == 'fixed_phases' else rng.standard_normal
    return jnp.asarray((2 * np.pi if 'fixed' in path[-1].key else 1) * draw(a.shape), jnp.float32)

  shapes = jax.eval_shape(module.init, jax.random.key(0), *given)
  return jax.tree_util.tree_map_with_path(leaf, shapes['params'])


@pytest.fixture(scope='module')
def tiny():
  """Params of TINY with every gain at 0.7, so that no output is zero."""
  return _params(TINY, Z, LABEL, gain=0.7)


_call = jax.jit(lambda function, *given: function(*given))
_run = jax.jit(lambda network, params, *given: network.apply({'params': params}, *given),
               static_argnums=0)


def _golden():
  return golden.example('edm2_a_state.safetensors', 'edm2_a_forward.npz')


@pytest.fixture(scope='module')
def theirs():
  """(apply, params, arrays) of the golden checkpoint."""
  path, arrays = _golden()
  return *interop.load(path, 'edm2', **GOLDEN), arrays


def _error(found, expected):
  expected = expected.transpose(0, 2, 3, 1) if expected.ndim == 4 else expected
  return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


def test_golden_network_and_each_of_its_blocks(theirs):
  apply, params, arrays = theirs
  network = apply.keywords['network'].value
  y, kept = jax.jit(lambda params, *given: network.apply(
      {'params': params}, *given, mutable=['intermediates']))(
          params, *map(jnp.asarray, (arrays['x_in'].transpose(0, 2, 3, 1), arrays['c_noise'],
                                     arrays['class_labels'])))
  assert _error(y, arrays['F_x']) < 2e-5
  parts = [key for key in arrays if key.startswith('act.')]
  assert len(parts) == 15
  for key in parts:
    found = kept['intermediates']['after_' + key[4:].replace('.', '_')][0]
    assert _error(found, arrays[key]) < 2e-5, key


@pytest.mark.parametrize('case, sigma, labels', [
    ('D_x', None, 'class_labels'), ('D_x_labels_none', None, None),
    pytest.param('D_x_scalar_sigma_1.25', 1.25, 'class_labels', marks=pytest.mark.long)])
def test_golden_denoiser_is_the_output_edm_converted_to_x(theirs, case, sigma, labels):
  apply, params, arrays = theirs
  sigma = jnp.asarray(arrays['sigma'] if sigma is None else np.full(4, sigma, np.float32))
  network = fields.conditioned(
      Partial(apply, params), processes.edm, c_noise=fields.quarter_log_sigma,
      scale_input=Partial(fields.unit_variance, sigma_data=0.5))
  denoise = fields.as_output(
      fields.bind(network, None if labels is None else jnp.asarray(arrays[labels])),
      process=processes.edm, output=Partial(outputs.edm, sigma_data=0.5), to=outputs.x)
  x = _call(denoise, jnp.asarray(arrays['x'].transpose(0, 2, 3, 1)), sigma)
  assert _error(x, arrays[case]) < 2e-5


def test_golden_uncertainty(theirs):
  _, params, arrays = theirs
  u = _run(magnitude.LogVariance(), params['uncertainty'], arrays['c_noise'])
  assert _error(u, arrays['logvar'].ravel()) < 2e-5


def test_golden_classes_are_one_hot_vectors_and_export_returns_the_file(theirs, tmp_path):
  apply, params, arrays = theirs
  x, c = jnp.asarray(arrays['x_in'].transpose(0, 2, 3, 1)), jnp.asarray(arrays['c_noise'])
  classes = jnp.array([3, 0, 9, 7])
  np.testing.assert_allclose(_call(apply, params, x, c, classes),
                             _call(apply, params, x, c, jnp.eye(10)[classes]), atol=1e-6)
  interop.export(params, tmp_path / 'again', 'edm2')
  again, file = safetensors.load_file(tmp_path / 'again'), safetensors.load_file(_golden()[0])
  assert set(again) == set(file)
  for key in file:
    assert again[key].shape == file[key].shape, key
    np.testing.assert_array_equal(again[key], file[key], err_msg=key)


def test_the_network_starts_as_zero_and_its_denoiser_as_c_skip_times_z():
  params = _params(TINY, Z, LABEL)
  predict = fields.bind(fields.conditioned(
      Partial(TINY.apply, {'params': params}), processes.edm, c_noise=fields.quarter_log_sigma,
      scale_input=Partial(fields.unit_variance, sigma_data=0.5)), jnp.array([0, 2]))
  sigma = jnp.array([0.4, 3.0])
  assert not np.asarray(_call(predict, Z, sigma)).any(), 'gains start at zero, so does the network'
  denoise = fields.as_output(predict, process=processes.edm, to=outputs.x,
                             output=Partial(outputs.edm, sigma_data=0.5))
  skip = (0.25 / (np.square([0.4, 3.0]) + 0.25))[:, None, None, None]
  np.testing.assert_allclose(_call(denoise, Z, sigma), skip * np.asarray(Z), rtol=1e-6)


def _layer(module, x):
  return _run(module, _params(module, x), x)


def _started(module, x):
  return jax.jit(lambda x: module.apply(module.init(jax.random.key(5), x), x))(x)


def _image(seed=0, channels=64):
  return jax.random.normal(jax.random.key(seed), (4, 32, 32, channels))


@pytest.mark.parametrize('make', [
    lambda: _layer(magnitude.Linear(64, 1), _image()),
    lambda: _layer(magnitude.Linear(64, 3), _image())[:, 1:-1, 1:-1],
    lambda: _started(magnitude.Linear(256), jax.random.normal(jax.random.key(0), (N, 64))),
    lambda: magnitude.silu(_image()),
    lambda: magnitude.lerp(_image(0), _image(1), 0.3),
    lambda: magnitude.cat(_image(0, 48), _image(1, 16), 0.7),
    lambda: _started(magnitude.Fourier(N), jnp.linspace(-2, 2, 16)),
    lambda: magnitude.normalize(3 * _image()),
], ids=['1x1', '3x3', 'linear', 'silu', 'lerp', 'cat', 'fourier', 'pixel norm'])
def test_every_layer_keeps_unit_rms(make):
  rms = np.sqrt(np.square(np.asarray(make())).mean())
  assert abs(rms - 1) < 0.02, f'unit RMS in, {rms:.4f} out'


def test_cat_gives_its_inputs_the_weights_1_minus_t_and_t():
  # The squared norms of a and b are as (1 - t)^2 to t^2, for any number of channels.
  y = magnitude.cat(_image(0, 48), _image(1, 16), 0.7)
  a, b = (float(jnp.square(part).sum()) for part in (y[..., :48], y[..., 48:]))
  assert abs(b / a / (0.7 / 0.3) ** 2 - 1) < 0.02


@pytest.mark.parametrize('taps', [(1, 1), (1, 3, 3, 1), (1, 2)])
def test_resampling_is_its_formula_and_up_is_the_transpose_of_down(taps, x64):
  f = np.asarray(taps) / sum(taps)
  pad, x = (len(taps) - 1) // 2, np.random.default_rng(0).standard_normal((6, 6))
  down, up = np.zeros((3, 3)), np.zeros((12, 12))
  for i in range(6):
    for j in range(6):
      for k in range(len(taps)):
        for m in range(len(taps)):
          # Pixel (i, j) meets tap (k, m) in the window that starts at (i - k, j - m).
          p, q = i - k + pad, j - m + pad
          if p % 2 == 0 and q % 2 == 0 and 0 <= p < 6 and 0 <= q < 6:
            down[p // 2, q // 2] += f[k] * f[m] * x[i, j]
          p, q = 2 * i + k - pad, 2 * j + m - pad
          if 0 <= p < 12 and 0 <= q < 12:
            up[p, q] += 4 * f[k] * f[m] * x[i, j]
  given = jnp.asarray(x)[None, :, :, None]
  np.testing.assert_allclose(magnitude.resample(given, taps=taps)[0, ..., 0], down, atol=1e-14)
  np.testing.assert_allclose(magnitude.resample(given, up=True, taps=taps)[0, ..., 0], up, atol=1e-14)


def test_normalized_changes_only_weights_and_gives_them_unit_rms(tiny):
  flat, found = (traverse_util.flatten_dict(jax.tree.map(np.asarray, tree))
                 for tree in (tiny, jax.jit(magnitude.normalized)(tiny)))
  weights = [path for path in flat if path[-1] == 'weight']
  assert len(weights) > 20
  for path, a in found.items():
    if path in weights:
      before, after = (np.sqrt(np.square(w).mean(tuple(range(w.ndim - 1)))) for w in (flat[path], a))
      # Not exactly 1: 1e-4 is added to the RMS, to avoid a division by 0.
      np.testing.assert_allclose(after, before / (1e-4 + before), rtol=1e-5, err_msg=str(path))
    else:
      np.testing.assert_array_equal(a, flat[path], err_msg=str(path))


@pytest.mark.long
def test_gradients_are_orthogonal_to_every_filter(tiny):
  params = jax.jit(magnitude.normalized)(tiny)
  grads = jax.jit(jax.grad(lambda p: jnp.square(TINY.apply({'params': p}, Z, LABEL) - Z).sum()))(params)
  for path, g in traverse_util.flatten_dict(grads).items():
    if path[-1] == 'weight':
      w, axes = traverse_util.flatten_dict(params)[path], tuple(range(g.ndim - 1))
      along = np.abs((g * w).sum(axes)) / (np.linalg.norm(g) * np.sqrt(w.size) + 1e-30)
      assert along.max() < 1e-3, f'{path}: the gradient has a component along the weight'


def test_the_output_does_not_depend_on_the_scale_of_weights(tiny):
  scaled = jax.tree_util.tree_map_with_path(
      lambda path, a: 3 * a if path[-1].key == 'weight' else a, tiny)
  found, expected = (_run(TINY, params, Z, LABEL) for params in (scaled, tiny))
  assert np.abs(found - expected).max() < 2e-3 * np.abs(expected).max()


@pytest.mark.parametrize('name, millions', [
    ('xxs', 31.3), *(pytest.param(*row, marks=pytest.mark.long) for row in [
        ('xs', 124.7), ('s', 280.2), ('m', 497.8), ('l', 777.5), ('xl', 1119.3), ('xxl', 1523.2)])])
def test_presets_have_the_published_numbers_of_parameters(name, millions):
  network = edm2.EDM2(width=edm2.PRESETS[f'512-{name}']['width'], num_classes=1000)
  assert abs(_count(network, 64, 4) / 1e6 - millions) < 0.05


def test_a_small_network_has_723_691_parameters():
  network = edm2.EDM2(width=32, multipliers=(1, 2), blocks=1, attention=(16,), num_classes=10)
  assert _count(network, 32, 3) == 723_691


def _count(network, side, channels):
  def init():
    uncertainty = magnitude.LogVariance().init(jax.random.key(0), jnp.zeros(1))['params']
    z = jnp.zeros((1, side, side, channels))
    return network.init(jax.random.key(0), z, jnp.zeros(1))['params'] | {'uncertainty': uncertainty}
  return embed.count(jax.eval_shape(init))[1]


def test_dropout_of_an_example_depends_on_its_key_only(tiny):
  network = TINY.clone(dropout=0.5)
  run = lambda z, c_noise, keys: _run(network, tiny, z, c_noise, None, keys)
  keys = jax.random.split(jax.random.key(3), 2)
  both = run(Z, LABEL, keys)
  alone = run(Z[::-1], LABEL[::-1], keys[::-1])[::-1]
  np.testing.assert_allclose(both, alone, atol=1e-5)
  assert np.abs(both - run(Z, LABEL, keys[::-1])).max() > 0.01, 'other keys must drop other elements'
  np.testing.assert_array_equal(_run(network, tiny, Z, LABEL), _run(TINY, tiny, Z, LABEL))


def test_dropout_keeps_the_mean():
  x, keys = jnp.ones((2, 64, 64)), jax.random.split(jax.random.key(0), 2)
  y = magnitude.dropout(x, 0.25, keys)
  assert abs(float(y.mean()) - 1) < 0.02 and set(np.unique(y).round(4)) == {0.0, np.float32(1.3333)}


# Not float16: attention on CPUs does not support it.
def test_bfloat16_is_close_to_float32(tiny):
  wide, half = (_run(network, tiny, Z, LABEL) for network in (TINY, TINY.clone(dtype=jnp.bfloat16)))
  error = float(jnp.abs(half - wide).max() / jnp.abs(wide).max())
  assert half.dtype == jnp.float32 and 0.002 < error < 0.1, error


@pytest.mark.long
def test_remat_gives_the_same_gradients(tiny):
  loss = lambda network: jax.jit(jax.grad(
      lambda p: jnp.square(network.apply({'params': p}, Z, LABEL)).sum()))(tiny)
  chex.assert_trees_all_close(loss(TINY.clone(remat=True)), loss(TINY), rtol=1e-4, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize('dtype', [np.float16, jnp.bfloat16])
def test_a_checkpoint_in_half_precision_computes_in_float32(tmp_path, dtype):
  path, arrays = _golden()
  halved = {key: a.astype(dtype) for key, a in safetensors.load_file(path).items()}
  found = []
  widened = {key: a.astype(np.float32) for key, a in halved.items()}
  for name, tensors in (('half', halved), ('wide', widened)):
    safetensors.save_file(tensors, tmp_path / name)
    apply, params = interop.load(tmp_path / name, 'edm2', **GOLDEN)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 3)), jnp.float32)
    found.append(np.asarray(_call(apply, params, x, jnp.array([0.1, -0.4]), jnp.eye(10)[:2])))
  assert np.abs(found[0] - found[1]).max() <= 2e-6 * np.abs(found[1]).max()


def test_heads_are_at_least_head_width_wide():
  # The reference has width // head_width heads, of width / heads channels.
  network = edm2.EDM2(width=24, multipliers=(1,), blocks=1, attention=(8,), head_width=16)
  jax.eval_shape(network.init, jax.random.key(0), Z, LABEL)
  with pytest.raises(ValueError, match='head_width=25.*24 channels'):
    jax.eval_shape(network.clone(head_width=25).init, jax.random.key(0), Z, LABEL)
  with pytest.raises(ValueError, match='head_width=13.*40 channels'):
    jax.eval_shape(network.clone(width=40, head_width=13).init, jax.random.key(0), Z, LABEL)


def test_normalize_has_a_finite_gradient_at_zero():
  slope = jax.jit(jax.grad(lambda x: magnitude.normalize(x).sum()))
  assert np.isfinite(slope(jnp.array([[0.0, 0.0], [3.0, 4.0]]))).all()
  # At 0 normalize(x) is x/eps.
  np.testing.assert_allclose(slope(jnp.zeros((2, 4))), 1e4, rtol=1e-5)


def test_a_network_without_classes_rejects_class_weights():
  with pytest.raises(ValueError, match=r'num_classes=0.*\(2, 3\)'):
    jax.eval_shape(TINY.clone(num_classes=0).init, jax.random.key(0), Z, LABEL, jnp.zeros((2, 3)))


def test_an_export_without_uncertainty_is_rejected(tiny, tmp_path):
  with pytest.raises(ValueError, match='uncertainty'):
    interop.export(tiny, tmp_path / 'file', 'edm2')


@pytest.mark.parametrize('network, z, message', [
    (TINY.clone(head_width=64), Z, 'head_width=64'),
    (TINY, Z[:, :7, :7], '7x7'),
    (TINY, Z[:, :4], '4x8'),
    (TINY.clone(resample_filter=(1, 2, 1)), Z, r'resample_filter=\(1, 2, 1\)'),
])
def test_options_and_images_that_do_not_fit_are_rejected(network, z, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(network.init, jax.random.key(0), z, LABEL)


def test_a_file_that_does_not_fit_the_options_is_rejected_with_all_differences():
  path, _ = _golden()
  with pytest.raises(ValueError, match=r'\d+ tensors') as caught:
    interop.load(path, 'edm2', **GOLDEN | dict(num_blocks=2, label_dim=7))
  assert 'missing unet.enc.16x16_block1.conv_res0.weight [32, 32, 3, 3]' in str(caught.value)
  assert 'misshapen unet.emb_label.weight [64, 10], expected [64, 7]' in str(caught.value)


@pytest.mark.parametrize('given, message', [
    (dict(x_in=jnp.zeros((2, 3, 16, 16))), r'x_in.*\(2, 3, 16, 16\)'),
    (dict(label_vectors=jnp.zeros((2, 9))), r'label_vectors.*\(2, 9\)'),
    (dict(label_vectors=jnp.array([99, -1])), r'label_vectors.*\[-1, 99\]'),
    (dict(label_vectors=jnp.array([0.5, 1.5])), 'label_vectors.*float32')])
def test_arrays_that_do_not_fit_the_checkpoint_are_rejected(theirs, given, message):
  apply, params, _ = theirs
  fits = dict(x_in=jnp.zeros((2, 16, 16, 3)), c_noise=jnp.zeros(2))
  with pytest.raises(ValueError, match=message):
    apply(params, **fits | given)


@pytest.mark.parametrize('options, message', [
    (dict(clip_act=-1), 'clip_act=-1'),
    (dict(channel_mult=()), r'channel_mult=\(\)'),
    (dict(channel_mult=(1, 1.5)), r'channel_mult\[1\]=1.5'),
    (dict(res_balance=2), 'res_balance=2'), (dict(label_dim=-1), 'label_dim'),
    (dict(attn_balance=float('nan')), 'attn_balance=nan'), (dict(img_resolution=0), 'img_resolution=0'),
    (dict(channels_per_head=0), 'channels_per_head=0')])
def test_options_out_of_range_are_rejected(options, message):
  with pytest.raises(ValueError, match=message):
    interop.load(_golden()[0], 'edm2', **GOLDEN | options)


@pytest.mark.parametrize('lost', [('dec_16x16_block0',), ('enc_16x16_conv',), ('enc_8x8_down',),
                                  ('enc_8x8_block0', 'emb_linear'), ('uncertainty',), ('out_conv',)],
                         ids=str)
def test_an_export_with_a_missing_array_is_rejected(theirs, lost, tmp_path):
  params = of = jax.tree.map(lambda a: a, theirs[1])
  for name in lost[:-1]:
    of = of[name]
  del of[lost[-1]]
  with pytest.raises(ValueError, match=lost[-1]):
    interop.export(params, tmp_path / 'file', 'edm2')
  assert not (tmp_path / 'file').exists()


def test_a_transformer_is_rejected_as_edm2(tmp_path):
  with pytest.raises(ValueError, match='final/kernel'):
    interop.export({'final': {'kernel': np.zeros(3)}}, tmp_path / 'file', 'edm2')
