"""Published transformers: golden examples, signs, times, load and export, rejected inputs."""

import pathlib
import pickle
import re

import chex
import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors

from eqflow import energies, guidance, interop
from eqflow.models import embed
from eqflow.models.dit import DiT
from tests import golden
from tests.faults import hostile

# field: (our output over theirs, noise conditioning at our t).
FIELDS = {'eqm': (-1, lambda t: 0 * t), 'velocity': (-1, lambda t: 1 - t),
          'eps': (1, lambda t: 1000 * t - 1)}
T = jnp.array([0.25, 0.5, 0.875])
LABEL = jnp.array([0, 4, 2])


def _shapes(width=16, depth=1, hidden=64, patch=2, channels=3, made=24, rows=6, positions=4):
  """{key: shape} of a state dict of the reference code."""
  d = width
  shapes = {'pos_embed': (1, positions, d), 'x_embedder.proj.weight': (d, channels, patch, patch),
            'x_embedder.proj.bias': (d,), 't_embedder.mlp.0.weight': (d, 256),
            't_embedder.mlp.0.bias': (d,), 't_embedder.mlp.2.weight': (d, d),
            't_embedder.mlp.2.bias': (d,), 'y_embedder.embedding_table.weight': (rows, d)}
  for i in range(depth):
    for name, made_of in {'attn.qkv': (3 * d, d), 'attn.proj': (d, d), 'mlp.fc1': (hidden, d),
                          'mlp.fc2': (d, hidden), 'adaLN_modulation.1': (6 * d, d)}.items():
      shapes |= {f'blocks.{i}.{name}.weight': made_of, f'blocks.{i}.{name}.bias': made_of[:1]}
  return shapes | {'final_layer.linear.weight': (made, d), 'final_layer.linear.bias': (made,),
                   'final_layer.adaLN_modulation.1.weight': (2 * d, d),
                   'final_layer.adaLN_modulation.1.bias': (2 * d,)}


def _state(dtype=np.float32, **sizes):
  rng = np.random.default_rng(0)
  return {key: (0.3 * rng.standard_normal(shape)).astype(dtype)
          for key, shape in _shapes(**sizes).items()}


@pytest.fixture
def saved(tmp_path):
  """state -> the path of a safetensors file with it."""
  def save(state):
    safetensors.save_file(state, tmp_path / 'state.safetensors')
    return tmp_path / 'state.safetensors'
  return save


TINY = dict(input_size=4, num_heads=2)
Z = jax.random.normal(jax.random.key(0), (3, 4, 4, 3))
# One trace for each field: static values compare equal between two loads.
_run = jax.jit(lambda apply, *args: apply(*args))
_raw = jax.jit(DiT(patch=2, width=16, depth=1, heads=2, num_classes=5, doubled=True).apply)


def _golden():
  return golden.example('dit_tiny_state.safetensors', 'dit_tiny_forward.npz')


def _golden_error(y, expected):
  return np.abs(np.transpose(y, (0, 3, 1, 2)) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize('field, case, time', [
    ('eqm', 'eqm.out', lambda t: 0.3 + t), ('velocity', 'sit.out', lambda t: 1 - t),
    ('eps', 'sit.out', lambda t: (t + 1) / 1000)])
def test_golden_forward_pass(field, case, time):
  path, arrays = _golden()
  apply, params = interop.load(path, input_size=8, num_heads=4, field=field)
  with jax.default_matmul_precision('highest'):
    y = _run(apply, params, arrays['x'].transpose(0, 2, 3, 1), time(arrays['t']), arrays['y'])
  assert _golden_error(y, FIELDS[field][0] * arrays[case]) < 2e-5


@pytest.mark.parametrize('scale', [1.0, 4.0])
def test_golden_guidance_of_the_first_three_channels(scale):
  path, arrays = _golden()
  apply, params = interop.load(path, input_size=8, num_heads=4)
  condition, null = np.split(arrays['cfg_y'], 2)
  by_channel = np.array([[[(scale,) * 3 + (1.0,)]]])
  predict = guidance.guided(Partial(apply, params), condition, null, scale=by_channel)
  with jax.default_matmul_precision('highest'):
    y = jax.jit(predict)(jnp.asarray(arrays['x'][:2].transpose(0, 2, 3, 1)), jnp.zeros(2))
  assert _golden_error(y, -arrays[f'eqm.cfg{scale}.out'][:2]) < 2e-5


@pytest.mark.parametrize('field', FIELDS)
def test_golden_file_is_exported_bit_for_bit(field, tmp_path):
  path, _ = _golden()
  _, params = interop.load(path, input_size=8, num_heads=4, field=field)
  interop.export(params, tmp_path / 'again', channels=4, field=field)
  _check_equal(safetensors.load_file(tmp_path / 'again'), safetensors.load_file(path))


def test_golden_positions():
  path, _ = _golden()
  _, params = interop.load(path, input_size=8, num_heads=4)
  np.testing.assert_array_equal(embed.sincos_positions(4, 4, 64), params['fixed_positions'])


def _check_equal(found, expected):
  assert set(found) == set(expected)
  for key, a in expected.items():
    assert found[key].dtype == a.dtype and found[key].shape == a.shape, key
    assert found[key].tobytes() == a.tobytes(), key


VARIANTS = {
    'doubled': ({}, dict(num_classes=5, doubled=True)),
    'single': (dict(made=12), dict(num_classes=5)),
    'deep': (dict(hidden=32, depth=3, rows=3), dict(depth=3, mlp_ratio=2.0, num_classes=2,
                                                  doubled=True)),
    'coarse': (dict(patch=4, made=96, positions=1), dict(patch=4, num_classes=5, doubled=True)),
    'half': (dict(dtype=np.float16), dict(num_classes=5, doubled=True)),
    'bfloat16': (dict(dtype=ml_dtypes.bfloat16), dict(num_classes=5, doubled=True)),
}


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.long] * (name in ('single', 'half'))) for name in VARIANTS])
def test_sizes_are_read_from_the_shapes(name, saved, tmp_path):
  sizes, expected = VARIANTS[name]
  state = _state(**sizes)
  apply, params = interop.load(saved(state), **TINY)
  network = DiT(**{**dict(patch=2, width=16, depth=1, heads=2), **expected})
  started = jax.eval_shape(network.init, jax.random.key(0), Z, T, LABEL)['params']
  chex.assert_trees_all_equal_shapes(params, started)
  assert apply.keywords['network'].value == network
  assert jax.eval_shape(apply, params, Z, T, LABEL).dtype == jnp.float32
  interop.export(params, tmp_path / 'again', channels=3)
  _check_equal(safetensors.load_file(tmp_path / 'again'), state)


@pytest.mark.parametrize('field', FIELDS)
def test_a_field_has_its_sign_and_noise_conditioning(field, saved):
  state = _state()
  _, theirs = interop.load(saved(state), **TINY, field='eps')
  apply, params = interop.load(saved(state), **TINY, field=field)
  sign, conditioning = FIELDS[field]
  raw = _raw({'params': theirs}, Z, conditioning(T), LABEL)
  np.testing.assert_allclose(_run(apply, params, Z, T, LABEL), sign * raw, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('field', FIELDS)
def test_a_constant_network_returns_its_first_channels_with_their_sign(field, saved):
  state = _state()
  state['final_layer.linear.weight'][:] = 0
  # (row, column, channel) of a patch, as the reference's unpatchify reads them.
  bias = state['final_layer.linear.bias'].reshape(2, 2, 6)
  apply, params = interop.load(saved(state), **TINY, field=field)
  expected = FIELDS[field][0] * np.tile(bias[..., :3], (3, 2, 2, 1))
  np.testing.assert_array_equal(_run(apply, params, Z, T, LABEL), expected)


def test_an_eqm_network_does_not_depend_on_the_time(saved):
  apply, params = interop.load(saved(_state()), **TINY)
  y = _run(apply, params, Z, T, LABEL)
  np.testing.assert_array_equal(y, _run(apply, params, Z, 1 - T, LABEL))
  apply, params = interop.load(saved(_state()), **TINY, field='velocity')
  moved = _run(apply, params, Z, T.at[1].set(0.9), LABEL) - _run(apply, params, Z, T, LABEL)
  np.testing.assert_array_equal(np.any(moved, axis=(1, 2, 3)), [False, True, False])


def test_a_loaded_network_works_with_vmap_and_grad_and_compiles_once(saved):
  path = saved(_state())
  apply, params = interop.load(path, **TINY)
  y = _run(apply, params, Z, T, LABEL)
  single = lambda z, t, label: apply(params, z[None], t[None], label[None])[0]
  # field . v is the derivative of |f|^2/2 along v, which by the chain rule is f . df/dv.
  field = energies.energy_gradient(energies.squared_norm(Partial(apply, params)))
  v = jnp.roll(Z, 1, axis=1)

  @jax.jit
  def derived(z):
    _, along = jax.jvp(lambda z: apply(params, z, T, LABEL), (z,), (v,))
    return jax.vmap(single)(z, T, LABEL), field(z, T, LABEL), along

  mapped, slope, along = derived(Z)
  np.testing.assert_allclose(mapped, y, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(jnp.vdot(slope, v), jnp.vdot(y, along), rtol=1e-4)
  before = _run._cache_size()
  again = interop.load(path, **TINY)
  _run(*again, Z, T, LABEL)
  assert _run._cache_size() == before


def test_a_class_table_without_a_null_label(saved, tmp_path):
  state = _state(rows=5)
  apply, params = interop.load(saved(state), **TINY, num_classes=5)
  assert np.isfinite(_run(apply, params, Z, T, LABEL)).all()
  with pytest.raises(ValueError, match='label=None'):
    apply(params, Z, T, None)
  interop.export(params, tmp_path / 'again', channels=3)
  _check_equal(safetensors.load_file(tmp_path / 'again'), state)


def test_label_none_is_the_last_row(saved):
  apply, params = interop.load(saved(_state()), **TINY)
  np.testing.assert_array_equal(_run(apply, params, Z, T, None),
                                _run(apply, params, Z, T, jnp.full(3, 5)))
  apply, params = interop.load(saved(_state()), **TINY, num_classes=5)
  assert jax.eval_shape(apply, params, Z, T, None).shape == Z.shape


def test_one_error_lists_all_differences(saved):
  state = _state()
  del state['blocks.0.mlp.fc2.bias'], state['pos_embed']
  state['blocks.0.attn.qkv.weight'] = np.zeros((47, 16), np.float32)
  state['final_layer.linear.bias'] = np.zeros((7,), np.float32)
  state['x_embedder.proj.weight'] = np.zeros((16, 3, 2), np.float32)
  state['head.weight'] = np.zeros((2, 3), np.float32)
  state['t_embedder.mlp.0.bias'] = np.zeros((16,), np.int32)
  with pytest.raises(ValueError) as error:
    interop.load(saved(state), **TINY)
  assert str(error.value).splitlines()[1:] == [
      '  missing pos_embed [1, ?, 16]',
      '  missing blocks.0.mlp.fc2.bias [16]',
      '  unknown head.weight [2, 3]',
      '  misshapen x_embedder.proj.weight [16, 3, 2], expected [16, ?, ?, ?]',
      '  misshapen blocks.0.attn.qkv.weight [47, 16], expected [48, 16]',
      '  misshapen final_layer.linear.bias [7], expected [24]',
      '  dtype I32 of t_embedder.mlp.0.bias, expected one of F32, BF16, F16']


@pytest.mark.parametrize('sizes, options, named', [
    ({}, dict(num_classes=9), r'table.weight \[6, 16\], expected \[10, 16\]'),
    (dict(made=13), {}, r'linear.weight \[13, 16\], expected \[24, 16\]'),
    (dict(depth=0), {}, r'missing blocks.0.attn.qkv.weight \[48, 16\]'),
    ({}, dict(num_heads=3), 'num_heads=3.* 16'),
    ({}, dict(num_heads=0), 'num_heads=0'),
    ({}, dict(input_size=8), 'input_size=8.* 4 .*2x2.* 4$'),
    ({}, dict(input_size=5), 'input_size=5.* 4 '),
    ({}, dict(field='score'), r"field='score'.*\['eqm', 'velocity', 'eps'\]"),
    ({}, dict(family='unet'), r"family='unet'.*\['dit', 'edm2'\]"),
])
def test_numbers_and_names_that_do_not_fit_are_rejected(sizes, options, named, saved):
  with pytest.raises(ValueError, match=named):
    interop.load(saved(_state(**sizes)), **{**TINY, **options})


@pytest.mark.parametrize('changes, named', [
    ({'blocks.1.': None}, ['missing'] * 10),
    ({'blocks.x': (3,), 'blocks.999999.mlp.fc1.bias': (3,), 'blocks.7.x': (3,)},
     ['unknown blocks.x', 'unknown blocks.999999.mlp.fc1.bias', 'unknown blocks.7.x']),
    ({'blocks.0.mlp.fc1.weight': (63, 16)}, ['misshapen blocks.0.mlp.fc1.weight']),
    ({'blocks.0.mlp.fc1.bias': (63,)}, ['misshapen blocks.0.mlp.fc1.bias'])])
def test_an_error_in_a_block_lists_only_its_tensors(changes, named, saved):
  state = _state(depth=3)
  for name, shape in changes.items():
    if shape is None:
      state = {key: a for key, a in state.items() if not key.startswith(name)}
    else:
      state[name] = np.zeros(shape, np.float32)
  with pytest.raises(ValueError, match='width 16 and depth 3') as error:
    interop.load(saved(state), **TINY)
  lines = str(error.value).splitlines()[1:]
  assert len(lines) == len(named)
  for name in named:
    assert any(line.startswith(f'  {name} ') for line in lines), (name, lines)


def test_a_hidden_size_that_the_ratio_would_round_down_is_read(saved):
  assert int(122 / 28 * 28) == 121
  apply, params = interop.load(saved(_state(width=28, hidden=122)), **TINY)
  assert jax.eval_shape(apply, params, Z, T, LABEL).shape == Z.shape


@pytest.mark.parametrize('t, label, named', [
    (T, jnp.array([0, 6, 2]), r'label .*\[6\].* 0 to 5'),
    (T, np.array([-1, 4, 9]), r'label .*\[-1, 9\]'),
    (T, jnp.array([1]), r'label .*\(1,\) .*3 .*jnp.full\(3'),
    (T, 1, r'label .*\(\) .*3 '),
    (T[:1], LABEL, r't .*\(1,\) .*3 '),
    (0.5, LABEL, r't .*\(\) .*3 '), (0.5, None, r't .*\(\) ')])
def test_times_and_labels_need_one_number_for_each_image(t, label, named, saved):
  apply, params = interop.load(saved(_state()), **TINY)
  # With an abstract z: the error comes before any computation.
  with pytest.raises(ValueError, match=named):
    jax.eval_shape(lambda z: apply(params, z, t, label), Z)


def test_images_with_channels_first_are_rejected(saved):
  apply, params = interop.load(saved(_state()), **TINY)
  with pytest.raises(ValueError, match=r'\(3, 3, 4, 4\).*\(4, 4, 3\)'):
    apply(params, jnp.moveaxis(Z, 3, 1), T, LABEL)


class _Canary:
  """Its pickle creates a file when it is loaded."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


@pytest.mark.parametrize('start', [b'', b'PK\x03\x04'])
def test_a_pickle_is_not_opened(start, tmp_path):
  path, canary = tmp_path / 'model.pt', tmp_path / 'canary'
  path.write_bytes(start + pickle.dumps(_Canary(canary)))
  with pytest.raises(ValueError, match='model.pt.*python -m eqflow.interop in.pt out.safetensors'):
    interop.load(path, **TINY)
  assert not canary.exists()
  # The pickle does create the file when it is loaded.
  pickle.loads(pickle.dumps(_Canary(canary)))
  assert canary.exists()


def test_a_file_without_tensors_is_rejected(saved):
  with pytest.raises(ValueError, match='state.safetensors.*no tensors'):
    interop.load(saved({}), **TINY)


@pytest.mark.parametrize('dtype', [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_rejected(saved, value, dtype):
  state = _state(dtype)
  state['blocks.0.mlp.fc1.weight'][3, 5] = value
  with pytest.raises(ValueError, match='1 of 1,024 numbers of blocks.0.mlp.fc1.weight are NaN or inf'):
    interop.load(saved(state), **TINY)


@pytest.mark.parametrize('key,named', [('zz', 'no tensor zz'), ('a', 'a has dtype I32.*F32')])
def test_a_tensor_of_another_name_or_dtype_is_rejected(tmp_path, key, named):
  path = tmp_path / 'w.safetensors'
  safetensors.save_file({'a': np.arange(3, dtype=np.int32)}, path)
  with pytest.raises(ValueError, match=f'w.safetensors.*{named}'):
    interop.files.read(path, key)


@pytest.mark.parametrize('name', hostile.WEIGHTS)
def test_a_hostile_file_is_rejected(tmp_path, name):
  hostile.WEIGHTS[name](tmp_path / 'w.safetensors')
  with pytest.raises(ValueError, match='w.safetensors'):
    interop.load(tmp_path / 'w.safetensors', **TINY)


def test_a_directory_is_rejected(tmp_path):
  with pytest.raises(ValueError, match=f'{tmp_path}.*folder'):
    interop.load(tmp_path, **TINY)


def _started(**options):
  """Random params of one of our networks."""
  network = DiT(patch=2, width=16, depth=1, heads=2, **options)
  shapes = jax.eval_shape(network.init, jax.random.key(0), Z, T)['params']
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda a: 0.3 * rng.standard_normal(a.shape, np.float32), shapes)


def test_params_that_the_layout_lacks_are_rejected(tmp_path):
  params = _started(learned_positions=True)
  with pytest.raises(ValueError) as error:
    interop.export(params, tmp_path / 'out', channels=3)
  assert str(error.value).splitlines()[1:] == [
      '  missing classes/table/embedding', '  missing fixed_positions', '  no place for positions']
  params = _started(num_classes=2)
  with pytest.raises(ValueError, match='channels=4.* 12 '):
    interop.export(params, tmp_path / 'out', channels=4)
  assert not (tmp_path / 'out').exists()


def test_an_export_rejects_arrays_of_another_shape(tmp_path):
  params = _started(num_classes=5)
  kernel = params['block_0']['qkv']['kernel']
  params['block_0']['qkv']['kernel'] = kernel.T
  with pytest.raises(ValueError, match=re.escape(f'block_0/qkv/kernel is {list(kernel.T.shape)}')):
    interop.export(params, tmp_path / 'out', channels=3)
  params['block_0']['qkv']['kernel'] = kernel
  with pytest.raises(ValueError, match='channels=0'):
    interop.export(params, tmp_path / 'out', channels=0)
  assert not (tmp_path / 'out').exists()


def test_an_exported_network_is_loaded_unchanged(tmp_path):
  params = _started(num_classes=5, doubled=True)
  interop.export(params, tmp_path / 'out', channels=3)
  apply, again = interop.load(tmp_path / 'out', **TINY)
  chex.assert_trees_all_equal(again, params)
  y = _raw({'params': params}, Z, 0 * T, LABEL)
  np.testing.assert_allclose(_run(apply, again, Z, T, LABEL), y, rtol=1e-4, atol=1e-5)


def test_an_export_does_not_overwrite_a_file(tmp_path):
  (tmp_path / 'out').write_text('kept')
  with pytest.raises(ValueError, match='out exists'):
    interop.export(_started(num_classes=5), tmp_path / 'out', channels=3)
  assert (tmp_path / 'out').read_text() == 'kept'
