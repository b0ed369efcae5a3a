"""Snapshots on disk: what is written is read again, and what is damaged is reported."""

import json
import os
import tracemalloc

import jax
from jax import numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest
from safetensors import numpy as safetensors

from eqflow import ema
from eqflow.training import sharding, snapshots
from tests import test_ema

LIKE = {'a': {'kernel': np.zeros((3, 4), np.float32), 'fixed_table': np.zeros(5, np.float32)},
        'n': np.zeros((), np.int32)}


def tree(seed):
  """Parameters of the network LIKE; table and count are the same for every seed."""
  rng = np.random.default_rng(seed)
  return {'a': {'kernel': rng.normal(size=(3, 4)).astype(np.float32),
                'fixed_table': np.float32(1 + np.arange(5) / 1000)}, 'n': np.int32(7)}


def fill(folder, times=(100, 200, 300), run='run 1', dtype='float32'):
  """Snapshots of two averages at the times."""
  for i in times:
    snapshots.write(folder, i, {'0.05': tree(i), '0.1': tree(i + 1)}, run=run, dtype=dtype)


def reconstruct(folder, time, stds, *, like, sharding=None, **given):
  """({std: tree}, {std: expected error})."""
  made = snapshots.plan(folder, time, stds, like=like, **given)
  return snapshots.reconstruct(made, like, sharding=sharding), made.errors


def equal(a, b):
  """Whether two trees are the same, bit for bit."""
  same = lambda x, y: x.dtype == y.dtype and np.array_equal(x, y)
  return jax.tree.all(jax.tree.map(same, a, b))


def test_a_snapshot_is_a_safetensors_file_and_is_read_again(tmp_path):
  path = snapshots.write(tmp_path / 'snapshots', jnp.uint32(4096), {'0.1': tree(0), '0.05': tree(1)},
                         run='run 1')
  assert path.name == '000000004096.safetensors'
  assert sorted(p.name for p in path.parent.iterdir()) == [path.name, 'index.json']
  found = safetensors.load_file(path)
  assert sorted(found) == [f'{std}/{name}' for std in ('0.05', '0.1')
                           for name in ('a/fixed_table', 'a/kernel', 'n')]
  np.testing.assert_array_equal(found['0.1/a/kernel'], tree(0)['a']['kernel'])
  assert equal(snapshots.read(path, '0.05', LIKE), tree(1))
  assert snapshots.check(path.parent, like=LIKE, run='run 1') == [
      snapshots.Snapshot(path, 4096, ('0.05', '0.1'), 'run 1')]
  entry = json.loads((path.parent / 'index.json').read_text())[path.name]
  assert entry['bytes'] == path.stat().st_size and len(entry['sha256']) == 64


def test_bfloat16_rounds_only_trainable_leaves(tmp_path):
  fill(tmp_path, dtype='bfloat16')
  found = snapshots.read(tmp_path / '000000000100.safetensors', '0.05', LIKE)
  expected = tree(100)
  expected['a']['kernel'] = expected['a']['kernel'].astype(jnp.bfloat16)
  assert equal(found, expected)


def test_a_resumed_run_writes_the_same_snapshots_again(tmp_path):
  fill(tmp_path)
  before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
  fill(tmp_path, times=(200, 300))
  assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
  assert snapshots.listed(tmp_path) == [100, 200, 300]
  assert snapshots.listed(tmp_path / 'none') == []


def test_a_snapshot_that_is_not_in_the_index_is_reported(tmp_path):
  fill(tmp_path)
  index = json.loads((tmp_path / 'index.json').read_text())
  del index['000000000200.safetensors']
  (tmp_path / 'index.json').write_text(json.dumps(index))
  with pytest.raises(ValueError, match='000000000200.safetensors'):
    snapshots.check(tmp_path, like=LIKE)
  assert [s.examples for s in snapshots.check(tmp_path, like=LIKE, skip_damaged=True)] == [100, 300]
  assert [s.examples for s in snapshots.check(tmp_path, like=LIKE, until=150)] == [100]
  (tmp_path / 'index.json').unlink()
  with pytest.raises(ValueError, match='000000000100.*000000000300'):
    snapshots.check(tmp_path, like=LIKE)
  for text in ('[]', '{"000000000100.safetensors": {}}', '{"000000000100.safetensors": 3}'):
    (tmp_path / 'index.json').write_text(text)
    with pytest.raises(ValueError, match='index.json'):
      snapshots.check(tmp_path, like=LIKE)


@pytest.mark.parametrize('during', ['replace', 'fsync'])
def test_an_interrupted_write_leaves_the_older_snapshots_undamaged(tmp_path, monkeypatch, during):
  fill(tmp_path)
  def fail(*args):
    raise OSError('no power')
  with monkeypatch.context() as patch, pytest.raises(OSError, match='no power'):
    patch.setattr(os, during, fail)
    fill(tmp_path, times=(200, 400), run='other')
  assert [s.examples for s in snapshots.check(tmp_path, like=LIKE, run='run 1')] == [100, 200, 300]
  fill(tmp_path, times=(400,))
  assert snapshots.listed(tmp_path) == [100, 200, 300, 400]
  assert len(snapshots.check(tmp_path, like=LIKE, run='run 1')) == 4


def test_a_snapshot_is_on_disk_before_its_name_and_index_are(tmp_path, monkeypatch):
  calls, replace = [], os.replace
  monkeypatch.setattr(os, 'fsync', lambda fd: calls.append(os.readlink(f'/proc/self/fd/{fd}')))
  monkeypatch.setattr(os, 'replace', lambda a, b: (calls.append(f'-> {b}'), replace(a, b)))
  fill(tmp_path, times=(1,))
  file, index = tmp_path / '000000000001.safetensors', tmp_path / 'index.json'
  assert calls == [f'{file}.partial', f'-> {file}', str(tmp_path),
                   f'{index}.partial', f'-> {index}', str(tmp_path)]


def test_sharded_leaves_are_gathered_and_the_result_is_sharded_over_another_mesh(tmp_path):
  mesh = sharding.device_mesh()
  split = NamedSharding(mesh, PartitionSpec('data'))
  w = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
  like = {'w': jax.ShapeDtypeStruct((16, 3), jnp.bfloat16)}
  snapshots.write(tmp_path, 10, {'0.1': {'w': jax.device_put(w, split)}}, run='r')
  snapshots.write(tmp_path, 20, {'0.1': {'w': jax.device_put(2 * w, split)}}, run='r')
  other = sharding.device_mesh(jax.devices()[:2])
  for place in (NamedSharding(other, PartitionSpec('data')), sharding.replicated(mesh)):
    for given in (place, {'w': place}):
      trees, errors = reconstruct(tmp_path, None, [0.1], like=like, sharding=given)
      assert trees[0.1]['w'].sharding == place and trees[0.1]['w'].dtype == jnp.bfloat16
      np.testing.assert_array_equal(trees[0.1]['w'], (2 * w).astype(jnp.bfloat16))
      assert errors[0.1] < 1e-6
      made = snapshots.plan(tmp_path, 20, 0.1, like=like)
      (name, leaves), = snapshots.leaf_by_leaf(made, like, sharding=given)
      assert name == 'w' and leaves[0.1].sharding == place
      np.testing.assert_array_equal(leaves[0.1], trees[0.1]['w'])


@pytest.fixture(scope='module')
def tracked():
  """{std: [snapshots, updates]}: averages of basis vectors, which are their own profiles."""
  with jax.enable_x64(True):
    return test_ema.track([0.05, 0.1], 1024, batch=1, every=1, chunks=64,
                          params=test_ema.basis(1024))


@pytest.mark.parametrize('dtype,bound', [('float32', 1e-6), ('bfloat16', 2e-3)])
def test_averages_are_reconstructed_from_the_files(tmp_path, tracked, dtype, bound):
  for i in range(64):
    averages = {repr(std): {'layer': {'w': tracked[std][i]}, 'fixed_w': np.float32([i])}
                for std in (0.05, 0.1)}
    snapshots.write(tmp_path, 16 * (i + 1), averages, run='r', dtype=dtype)
  like = {'layer': {'w': np.zeros(1024, np.float32)}, 'fixed_w': np.zeros(1, np.float32)}
  wanted = [0.15, 0.15, 0.1]
  for time in (1024, 1000):
    trees, errors = reconstruct(tmp_path, time, wanted, like=like, run='r')
    assert list(trees) == list(errors) == [0.15, 0.1]
    # Snapshots after the target are not used: the last table is of the 62nd.
    assert trees[0.1]['fixed_w'] == (63 if time == 1024 else 61)
    # 1000 is between two snapshots: steps after the 62nd snapshot are missing, with a known error.
    for std, found in trees.items():
      direct = np.diff((np.arange(1025).clip(max=time) / time) ** (ema.power_from_std(std) + 1))
      distance = np.linalg.norm(found['layer']['w'] - direct) / np.linalg.norm(direct)
      assert distance == pytest.approx(errors[std], rel=0.05, abs=bound)
    made = snapshots.plan(tmp_path, time, wanted, like=like, run='r')
    np.testing.assert_allclose(made.coefficients.sum(0), 1, rtol=1e-12)
    leaves = dict(snapshots.leaf_by_leaf(made, like))
    assert list(leaves) == ['fixed_w', 'layer/w']
    for std in trees:
      np.testing.assert_array_equal(leaves['layer/w'][std], trees[std]['layer']['w'])
      np.testing.assert_array_equal(leaves['fixed_w'][std], trees[std]['fixed_w'])


@pytest.mark.parametrize('targets', [1, 2])
def test_memory_does_not_grow_with_the_number_of_snapshots(tmp_path, targets):
  size, leaves = 1 << 20, 'abcd'
  like = {name: jax.ShapeDtypeStruct((size,), jnp.float32) for name in leaves}
  given = {name: np.ones(size) for name in leaves}
  peaks = {}
  tracemalloc.start()
  try:
    for i in range(6):
      snapshots.write(tmp_path, 10 + i, {'0.05': given, '0.1': given}, run='r')
    peaks['write'] = tracemalloc.get_traced_memory()[1] / (4 * size)
    del given
    tracemalloc.reset_peak()
    made = snapshots.plan(tmp_path, 15, [0.07, 0.2][:targets], like=like)
    peaks['plan'] = tracemalloc.get_traced_memory()[1] / (4 * size)
    tracemalloc.reset_peak()
    for _, sums in snapshots.leaf_by_leaf(made, like):
      assert abs(sums[0.07].min() - 1) < 1e-5 and abs(sums[0.07].max() - 1) < 1e-5
      del sums
    peaks['leaf by leaf'] = tracemalloc.get_traced_memory()[1] / (4 * size)
    tracemalloc.reset_peak()
    assert len(reconstruct(tmp_path, 15, [0.07, 0.2][:targets], like=like)[0]) == targets
    peaks['trees'] = tracemalloc.get_traced_memory()[1] / (4 * size * len(leaves))
  finally:
    tracemalloc.stop()
  # Written leaf by leaf: one being written, and the next one converted to float32.
  assert peaks['write'] < 2.2 and peaks['plan'] < 0.3, peaks
  # One for each target, and the one being read.
  assert peaks['leaf by leaf'] < targets + 1.3 and peaks['trees'] < targets + 1.3, peaks


def damage(path, how):
  """Makes a snapshot missing, too short, or changes a byte of it."""
  if how == 'missing':
    path.unlink()
    return
  data = bytearray(path.read_bytes())
  if how == 'sha256':
    data[-5] ^= 1
  path.write_bytes(data[:-1] if how == 'bytes instead of' else data)


@pytest.mark.parametrize('how', ['missing', 'bytes instead of', 'sha256'])
def test_damaged_snapshots_are_all_named_and_skipped_on_request(tmp_path, how):
  fill(tmp_path, times=range(100, 900, 100))
  _, errors = reconstruct(tmp_path, None, [0.07, 0.1], like=LIKE, run='run 1')
  for time in (500, 700):
    damage(tmp_path / f'{time:012d}.safetensors', how)
  with pytest.raises(ValueError, match=(
      f'000000000500.safetensors.*{how}.*000000000700.safetensors.*{how}.*skip_damaged=True')):
    reconstruct(tmp_path, None, [0.07], like=LIKE, run='run 1')
  left = snapshots.check(tmp_path, like=LIKE, run='run 1', skip_damaged=True)
  assert [s.examples for s in left] == [100, 200, 300, 400, 600, 800]
  _, worse = reconstruct(tmp_path, None, [0.07, 0.1], like=LIKE, skip_damaged=True)
  assert worse[0.07] > 1.5 * errors[0.07] > 1e-3 and worse[0.1] < 1e-6, (errors, worse)
  # Snapshots after the target are not checked.
  assert len(snapshots.check(tmp_path, like=LIKE, until=400)) == 4


def test_snapshots_of_another_run_or_network_are_rejected(tmp_path):
  fill(tmp_path)
  fill(tmp_path, times=(400,), run='run 2')
  other = tree(0)
  other['a']['kernel'] = other['a']['kernel'].T
  snapshots.write(tmp_path, 500, {'0.05': other}, run='run 1')
  other = tree(0) | {'b': np.zeros(2, np.float32)}
  snapshots.write(tmp_path, 600, {'0.05': other, '0.1': other}, run='run 1')
  damage(tmp_path / '000000000200.safetensors', 'missing')
  for skip in (False, True):
    with pytest.raises(ValueError, match=(
        '000000000200.safetensors is missing; '
        "000000000400.safetensors is of run 'run 2', not 'run 1'; "
        r'000000000500.safetensors is of another architecture: 0.05/a/kernel is \[4, 3\] in the '
        r'file, \[3, 4\] in the network; 000000000600.safetensors is of another architecture: '
        r'0.05/b is \[2\] in the file, absent in the network')):
      snapshots.check(tmp_path, like=LIKE, run='run 1', skip_damaged=skip)
  with pytest.raises(ValueError, match='0.05/a/extra is absent in the file, .1. in the network'):
    snapshots.check(tmp_path, like=LIKE | {'a': LIKE['a'] | {'extra': np.zeros(1)}}, until=100)


@pytest.mark.parametrize('call,message', [
    (lambda folder: snapshots.check(folder / 'none', like=LIKE), '/none'),
    (lambda folder: snapshots.plan(folder, 99, [0.1], like=LIKE),
     '99 examples .* 100'),
    (lambda folder: snapshots.plan(folder, None, [0.3], like=LIKE), 'out_std=0.3'),
    (lambda folder: snapshots.write(folder, 1, {'0.1': tree(0)}, run='r', dtype='float16'),
     r"dtype='float16'.*float32.*bfloat16"),
    (lambda folder: snapshots.write(folder, 1, {'0.999': tree(0)}, run='r'),
     r"averages=\['0.999'\].*std=0.999"),
    (lambda folder: snapshots.write(folder, 1, {'fast': tree(0)}, run='r'), "averages=.'fast'"),
])
def test_bad_arguments_are_rejected(tmp_path, call, message):
  fill(tmp_path)
  with pytest.raises(ValueError, match=message):
    call(tmp_path)
  assert snapshots.listed(tmp_path) == [100, 200, 300]


def test_a_folder_without_undamaged_snapshots_or_index_is_rejected(tmp_path):
  fill(tmp_path, times=(100,))
  damage(tmp_path / '000000000100.safetensors', 'sha256')
  with pytest.raises(ValueError, match='sha256'):
    snapshots.check(tmp_path, like=LIKE, skip_damaged=True)
  (tmp_path / 'index.json').write_text('{"00')
  with pytest.raises(ValueError, match='index.json'):
    snapshots.listed(tmp_path)
