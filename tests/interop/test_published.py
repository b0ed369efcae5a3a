"""Published transformers: their numbers, signs and times, there and back, and what is refused."""

import pathlib
import pickle
import re
import subprocess
import sys
import types

import chex
import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors

from eqflow import energies, guidance, interop
from eqflow.interop import convert
from eqflow.models import embed
from eqflow.models.dit import DiT
from tests import ROOT, golden

# Our vector is theirs times the sign, and their network is told the label.
FIELDS = {'eqm': (-1, lambda t: 0 * t), 'velocity': (-1, lambda t: 1 - t),
          'eps': (1, lambda t: 1000 * t - 1)}
T = jnp.array([0.25, 0.5, 0.875])
LABEL = jnp.array([0, 4, 2])


def _shapes(width=16, depth=1, hidden=64, patch=2, channels=3, made=24, rows=6, positions=4):
  """The published layout, as in the state dicts of the reference code."""
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
  """state -> a safetensors file of it."""
  def save(state):
    safetensors.save_file(state, tmp_path / 'state.safetensors')
    return tmp_path / 'state.safetensors'
  return save


TINY = dict(input_size=4, num_heads=2)
Z = jax.random.normal(jax.random.key(0), (3, 4, 4, 3))
# One trace for each field: what is fixed at trace time compares by value between two loads.
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
  predict = guidance.guided(Partial(apply, params), condition, null, scale=(scale,) * 3 + (1.0,))
  with jax.default_matmul_precision('highest'):
    y = jax.jit(predict)(jnp.asarray(arrays['x'][:2].transpose(0, 2, 3, 1)), jnp.zeros(2))
  assert _golden_error(y, -arrays[f'eqm.cfg{scale}.out'][:2]) < 2e-5


@pytest.mark.parametrize('field', FIELDS)
def test_golden_file_there_and_back(field, tmp_path):
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


@pytest.mark.parametrize('name', VARIANTS)
def test_sizes_are_read_off_the_shapes(name, saved, tmp_path):
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
def test_time_and_sign_of_a_field(field, saved):
  state = _state()
  _, theirs = interop.load(saved(state), **TINY, field='eps')
  apply, params = interop.load(saved(state), **TINY, field=field)
  sign, told = FIELDS[field]
  raw = _raw({'params': theirs}, Z, told(T), LABEL)
  np.testing.assert_allclose(_run(apply, params, Z, T, LABEL), sign * raw, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('field', FIELDS)
def test_a_constant_network_comes_out_with_its_sign_and_its_first_channels(field, saved):
  state = _state()
  state['final_layer.linear.weight'][:] = 0
  # (row, column, channel) of a patch, as the reference's unpatchify reads them.
  bias = state['final_layer.linear.bias'].reshape(2, 2, 6)
  apply, params = interop.load(saved(state), **TINY, field=field)
  expected = FIELDS[field][0] * np.tile(bias[..., :3], (3, 2, 2, 1))
  np.testing.assert_array_equal(_run(apply, params, Z, T, LABEL), expected)


def test_a_blind_network_does_not_see_the_time(saved):
  apply, params = interop.load(saved(_state()), **TINY)
  y = _run(apply, params, Z, T, LABEL)
  np.testing.assert_array_equal(y, _run(apply, params, Z, 1 - T, LABEL))
  apply, params = interop.load(saved(_state()), **TINY, field='velocity')
  moved = _run(apply, params, Z, T.at[1].set(0.9), LABEL) - _run(apply, params, Z, T, LABEL)
  np.testing.assert_array_equal(np.any(moved, axis=(1, 2, 3)), [False, True, False])


def test_what_is_loaded_maps_differentiates_and_is_compiled_once(saved):
  path = saved(_state())
  apply, params = interop.load(path, **TINY)
  y = _run(apply, params, Z, T, LABEL)
  single = lambda z, t, label: apply(params, z[None], t[None], label[None])[0]
  # The field that descends |f|^2/2, and by the chain rule f . df/dv.
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


def test_a_table_without_a_null_row(saved, tmp_path):
  state = _state(rows=5)
  apply, params = interop.load(saved(state), **TINY, num_classes=5)
  assert np.isfinite(_run(apply, params, Z, T, LABEL)).all()
  with pytest.raises(ValueError, match='null label, and this class table has no row'):
    apply(params, Z, T, None)
  interop.export(params, tmp_path / 'again', channels=3)
  _check_equal(safetensors.load_file(tmp_path / 'again'), state)


def test_no_label_is_the_last_row(saved):
  apply, params = interop.load(saved(_state()), **TINY)
  np.testing.assert_array_equal(_run(apply, params, Z, T, None),
                                _run(apply, params, Z, T, jnp.full(3, 5)))
  apply, params = interop.load(saved(_state()), **TINY, num_classes=5)
  assert jax.eval_shape(apply, params, Z, T, None).shape == Z.shape


def test_all_that_differs_is_said_at_once(saved):
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
      '  t_embedder.mlp.0.bias of dtype I32, expected one of F32, BF16, F16']


@pytest.mark.parametrize('sizes, options, said', [
    ({}, dict(num_classes=9), r'table.weight \[6, 16\], expected \[10, 16\]'),
    (dict(made=13), {}, r'linear.weight \[13, 16\], expected \[24, 16\]'),
    (dict(depth=0), {}, r'missing blocks.0.attn.qkv.weight \[48, 16\]'),
    ({}, dict(num_heads=3), 'num_heads=3 does not divide the width 16'),
    ({}, dict(num_heads=0), 'num_heads=0 does not'),
    ({}, dict(input_size=8), 'input_size=8: pos_embed has 4 .* of 2x2, an image of side 4'),
    ({}, dict(input_size=5), 'input_size=5: pos_embed has 4'),
    ({}, dict(field='score'), r"field='score': choose from \['eqm', 'velocity', 'eps'\]"),
    ({}, dict(family='unet'), r"family='unet': choose from \['dit', 'edm2'\]"),
])
def test_numbers_and_names_that_do_not_fit_are_refused(sizes, options, said, saved):
  with pytest.raises(ValueError, match=said):
    interop.load(saved(_state(**sizes)), **{**TINY, **options})


@pytest.mark.parametrize('changes, said', [
    ({'blocks.1.': None}, ['missing'] * 10),
    ({'blocks.x': (3,), 'blocks.999999.mlp.fc1.bias': (3,), 'blocks.7.x': (3,)},
     ['unknown blocks.x', 'unknown blocks.999999.mlp.fc1.bias', 'unknown blocks.7.x']),
    ({'blocks.0.mlp.fc1.weight': (63, 16)}, ['misshapen blocks.0.mlp.fc1.weight']),
    ({'blocks.0.mlp.fc1.bias': (63,)}, ['misshapen blocks.0.mlp.fc1.bias'])])
def test_what_is_wrong_in_a_block_is_named_alone(changes, said, saved):
  state = _state(depth=3)
  for name, shape in changes.items():
    if shape is None:
      state = {key: a for key, a in state.items() if not key.startswith(name)}
    else:
      state[name] = np.zeros(shape, np.float32)
  with pytest.raises(ValueError, match='width 16 and depth 3') as error:
    interop.load(saved(state), **TINY)
  lines = str(error.value).splitlines()[1:]
  assert len(lines) == len(said)
  for name in said:
    assert any(line.startswith(f'  {name} ') for line in lines), (name, lines)


def test_a_width_that_the_ratio_rounds_down_is_read(saved):
  assert int(122 / 28 * 28) == 121
  apply, params = interop.load(saved(_state(width=28, hidden=122)), **TINY)
  assert jax.eval_shape(apply, params, Z, T, LABEL).shape == Z.shape


@pytest.mark.parametrize('t, label, said', [
    (T, jnp.array([0, 6, 2]), r'label holds \[6\], the class table has the rows 0 to 5'),
    (T, np.array([-1, 4, 9]), r'label holds \[-1, 9\]'),
    (T, jnp.array([1]), r'label has the shape \(1,\), z holds 3 images.*of shape \(3,\)'),
    (T, 1, r'label has the shape \(\), z holds 3'),
    (T[:1], LABEL, r't has the shape \(1,\), z holds 3'),
    (0.5, LABEL, r't has the shape \(\), z holds 3'), (0.5, None, r't has the shape \(\)')])
def test_times_and_labels_that_are_not_one_for_each_image_are_refused(t, label, said, saved):
  apply, params = interop.load(saved(_state()), **TINY)
  # Abstract z: what is refused is refused before anything is computed.
  with pytest.raises(ValueError, match=said):
    jax.eval_shape(lambda z: apply(params, z, t, label), Z)


def test_images_of_another_layout_are_refused(saved):
  apply, params = interop.load(saved(_state()), **TINY)
  with pytest.raises(ValueError, match=r'\(3, 3, 4, 4\).*\(4, 4, 3\)'):
    apply(params, jnp.moveaxis(Z, 3, 1), T, LABEL)


class _Canary:
  """Pickled, a call that leaves a file behind when it is opened."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


@pytest.mark.parametrize('start', [b'', b'PK\x03\x04'])
def test_a_pickle_is_not_opened(start, tmp_path):
  path, canary = tmp_path / 'model.pt', tmp_path / 'canary'
  path.write_bytes(start + pickle.dumps(_Canary(canary)))
  with pytest.raises(ValueError, match='A pickle.*python -m eqflow.interop in.pt out.safetensors'):
    interop.load(path, **TINY)
  assert not canary.exists()
  # It is one that would have left its mark.
  pickle.loads(pickle.dumps(_Canary(canary)))
  assert canary.exists()


def test_a_file_of_no_tensors_is_refused(saved):
  with pytest.raises(ValueError, match='holds no tensors'):
    interop.load(saved({}), **TINY)


def test_a_directory_is_refused(tmp_path):
  with pytest.raises(ValueError, match='is a directory: name the safetensors file'):
    interop.load(tmp_path, **TINY)


class _Tensor:
  """What `convert` asks of a tensor of torch."""

  def __init__(self, pointer):
    self.pointer = pointer

  def detach(self):
    return self

  contiguous = detach

  def clone(self):
    return _Tensor(self.pointer + 100)

  def untyped_storage(self):
    return types.SimpleNamespace(data_ptr=lambda: self.pointer)


def _converting(monkeypatch, save_file):
  """`convert` of tensors of which two share memory, with a torch that is not there."""
  state = {'a': _Tensor(1), 'tied to a': _Tensor(1), 'b': _Tensor(2)}
  torch = types.SimpleNamespace(is_tensor=lambda a: isinstance(a, _Tensor))
  monkeypatch.setattr(convert, '_torch', lambda: torch)
  monkeypatch.setattr(convert, '_loaded', lambda torch, source: state)
  monkeypatch.setitem(sys.modules, 'safetensors.torch', types.SimpleNamespace(save_file=save_file))


def test_tensors_that_share_memory_are_converted_each_in_full(monkeypatch, tmp_path):
  def save_file(state, path):
    assert {name: a.pointer for name, a in state.items()} == {'a': 1, 'tied to a': 101, 'b': 2}
    pathlib.Path(path).write_text('whole')

  _converting(monkeypatch, save_file)
  convert.convert('in.pt', tmp_path / 'out')
  assert [path.read_text() for path in tmp_path.iterdir()] == ['whole']
  assert (tmp_path / 'out').exists()


def test_a_conversion_that_is_interrupted_leaves_no_file(monkeypatch, tmp_path):
  def save_file(state, path):
    pathlib.Path(path).write_text('ha')
    assert not (tmp_path / 'out').exists()
    raise KeyboardInterrupt

  _converting(monkeypatch, save_file)
  with pytest.raises(KeyboardInterrupt):
    convert.convert('in.pt', tmp_path / 'out')
  assert not list(tmp_path.iterdir())


def test_converting_without_a_torch_that_is_safe_is_refused(monkeypatch, tmp_path, capsys):
  path = tmp_path / 'model.pt'
  path.write_bytes(b'')
  monkeypatch.setattr(sys, 'argv', ['interop', str(path), str(tmp_path / 'out')])
  for torch, said in ((None, 'needs torch >= 2.6'),
                      (types.SimpleNamespace(__version__='2.5.1+cpu'), 'torch 2.5.1.*torch >= 2.6')):
    monkeypatch.setitem(sys.modules, 'torch', torch)
    with pytest.raises(SystemExit, match=said):
      convert.main()
  assert not (tmp_path / 'out').exists()


def test_the_command_says_how_it_is_used():
  out = subprocess.run([sys.executable, '-m', 'eqflow.interop', '--help'], capture_output=True,
                       text=True, check=True, cwd=ROOT)
  assert 'python -m eqflow.interop in.pt out.safetensors' in out.stdout


def _started(**options):
  """The params of a network of ours, at random."""
  network = DiT(patch=2, width=16, depth=1, heads=2, **options)
  shapes = jax.eval_shape(network.init, jax.random.key(0), Z, T)['params']
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda a: 0.3 * rng.standard_normal(a.shape, np.float32), shapes)


def test_params_without_a_place_in_the_layout_are_refused(tmp_path):
  params = _started(learned_positions=True)
  with pytest.raises(ValueError) as error:
    interop.export(params, tmp_path / 'out', channels=3)
  assert str(error.value).splitlines()[1:] == [
      '  missing classes/table/embedding', '  missing fixed_positions', '  no place for positions']
  params = _started(num_classes=2)
  with pytest.raises(ValueError, match='channels=4: a patch of this network has 12 numbers'):
    interop.export(params, tmp_path / 'out', channels=4)
  assert not (tmp_path / 'out').exists()


def test_arrays_of_another_shape_are_not_exported(tmp_path):
  params = _started(num_classes=5)
  kernel = params['block_0']['qkv']['kernel']
  params['block_0']['qkv']['kernel'] = kernel.T
  with pytest.raises(ValueError, match=re.escape(f'block_0/qkv/kernel is {list(kernel.T.shape)}')):
    interop.export(params, tmp_path / 'out', channels=3)
  params['block_0']['qkv']['kernel'] = kernel
  with pytest.raises(ValueError, match='channels=0'):
    interop.export(params, tmp_path / 'out', channels=0)
  assert not (tmp_path / 'out').exists()


def test_a_network_of_ours_is_exported(tmp_path):
  params = _started(num_classes=5, doubled=True)
  interop.export(params, tmp_path / 'out', channels=3)
  apply, again = interop.load(tmp_path / 'out', **TINY)
  chex.assert_trees_all_equal(again, params)
  y = _raw({'params': params}, Z, 0 * T, LABEL)
  np.testing.assert_allclose(_run(apply, again, Z, T, LABEL), y, rtol=1e-4, atol=1e-5)


def test_a_file_that_exists_is_not_written_over(tmp_path):
  (tmp_path / 'out').write_text('kept')
  with pytest.raises(ValueError, match='out exists: remove it, or name another file'):
    interop.export(_started(num_classes=5), tmp_path / 'out', channels=3)
  assert (tmp_path / 'out').read_text() == 'kept'
