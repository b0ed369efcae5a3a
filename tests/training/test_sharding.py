"""Meshes: which device has which shard, and that nothing a run computes depends on it."""

import math

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from eqflow.config import recipes
from eqflow.data import pipeline
from eqflow.models import partitioning
from eqflow.runs import blueprint
from eqflow.runs.dataset import open_source
from eqflow.training import checkpoint, sharding
from tests import config_file as load

WHOLE = dict(data=8, fsdp=1, tensor=1)


@pytest.mark.parametrize('spec,shape,sizes,expected,lost', [
    (P('fsdp', 'tensor'), (8, 6), dict(fsdp=4, tensor=3), P('fsdp', 'tensor'), []),
    (P('fsdp', 'tensor'), (8, 6), dict(fsdp=4, tensor=1), P('fsdp'), []),
    (P('fsdp', 'tensor'), (8, 6), dict(fsdp=1, tensor=1), P(), []),
    # 1152 does not divide by 256, four times that does.
    (P('fsdp', None), (1152, 4608), dict(fsdp=256, tensor=1), P(None, 'fsdp'), []),
    (P('fsdp', None), (1152, 3456), dict(fsdp=256, tensor=1), P(), ['fsdp']),
    (P('fsdp', 'tensor'), (9, 8), dict(fsdp=2, tensor=8), P(None, 'tensor'), ['fsdp']),
    (P(None, 'fsdp'), (3, 12, 5), dict(fsdp=5, tensor=1), P(None, None, 'fsdp'), []),
    (P(('data', 'fsdp')), (8, 3), dict(data=2, fsdp=4, tensor=1), P(('data', 'fsdp')), []),
    (P(('data', 'fsdp')), (4, 3), dict(data=2, fsdp=4, tensor=1), P('data'), ['fsdp']),
    ((), (4, 3), dict(data=2, fsdp=4, tensor=1), P(), []),
])
def test_an_array_is_sharded_along_axes_that_divide_it(spec, shape, sizes, expected, lost):
  assert partitioning.fitted(spec, shape, sizes) == (expected, lost)


def test_a_mesh_must_use_every_device():
  devices = jax.devices()
  assert sharding.device_mesh().shape == WHOLE
  assert sharding.device_mesh(devices, data=2, fsdp=-1).shape == dict(data=2, fsdp=4, tensor=1)
  assert sharding.device_mesh(devices[:4], fsdp=2, tensor=2).shape == dict(data=1, fsdp=2, tensor=2)
  for wrong in (dict(data=3), dict(data=-1, fsdp=-1), dict(fsdp=3), dict(data=0), dict(tensor=-2),
                dict(data=16)):
    with pytest.raises(ValueError, match=r'on 8 device'):
      sharding.device_mesh(devices, **wrong)


def test_the_value_of_a_process_is_on_each_of_its_devices_and_is_not_replicated():
  # XLA would read a replicated array from any one device.
  for sizes in (dict(data=8), dict(data=1, tensor=8), dict(data=2, fsdp=2, tensor=2)):
    said = sharding.of_each(1.0, sharding.device_mesh(**sizes))
    assert said.shape == (8,) and len({str(shard.index) for shard in said.addressable_shards}) == 8


@pytest.mark.parametrize('file,variant,sizes,share', [
    # Tables of positions and frequencies, biases and the 1,001 classes are replicated.
    ('imagenet512', 's', dict(data=1, fsdp=8), 1.02 / 8),
    ('imagenet512', 's', dict(data=1, fsdp=4, tensor=2), 1.02 / 8),
    ('imagenet64', 'xs', dict(data=2, fsdp=4), 1.02 / 4),
    ('digits', 'flow', dict(data=1, fsdp=8), 1.4 / 8),
])
@pytest.mark.long
def test_moments_and_averages_are_sharded_like_the_parameters(
    file, variant, sizes, share):
  config, mesh = load(file).get_config(variant), sharding.device_mesh(**sizes)
  state = blueprint.first_state(config, recipes.recipe(config), mesh, abstract=True)
  held = lambda tree: sum(math.prod(a.sharding.shard_shape(a.shape)) for a in jax.tree.leaves(tree))
  size = lambda tree: sum(a.size for a in jax.tree.leaves(tree))
  assert held(state) <= share * size(state), f'a device holds {held(state) / size(state):.3f}'
  for tree in (*state.emas.values(), *(found for found in optax.tree.get_all_with_path(
      state.opt_state, 'mu'))):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      name = jax.tree_util.keystr(path)
      like = {jax.tree_util.keystr(p): a for p, a in jax.tree_util.tree_leaves_with_path(state.params)}
      matching = [a for p, a in like.items() if name.endswith(p)]
      assert all(leaf.sharding == a.sharding for a in matching), f'{name} has another sharding'


def test_undivided_names_what_cannot_be_sharded():
  config = load('digits').get_config('flow')
  config.model.update(dict(width=36, heads=4))
  recipe = recipes.recipe(config)
  state = blueprint.first_state(config, recipe, sharding.device_mesh(data=1, fsdp=8), abstract=True)
  found = sharding.undivided(state.params, recipe.model.rules, sharding.device_mesh(data=1, fsdp=8))
  # 36, 108 and 216 by 8: only the last, and four times 36, and 256 frequencies.
  assert found['block_0/qkv/kernel'] == ['fsdp'] and 'block_0/modulation/kernel' not in found
  assert 'block_0/up/kernel' not in found and 'noise/up/kernel' not in found


def _config(file, variant, batch):
  config = load(file).get_config(variant)
  config.train.update(dict(batch=batch, num_examples=60 * batch))
  if config.model.name == 'mlp':
    config.model.update(dict(width=32, depth=1))
  if 'patch' in config.model:
    config.model.update(dict(width=32, depth=1, heads=4))
  if config.model.name == 'edm2':
    config.model.update(dict(width=16, blocks=1))
    config.train.accumulate = 2
  config.optimizer.warmup_examples = 0
  return config.lock()


def _losses(config, mesh, state=None, count=50, first=0):
  """(the state before the first of these steps, their losses, the state after), on a mesh."""
  recipe = recipes.recipe(config)
  like = blueprint.first_state(config, recipe, mesh)
  state = state or like
  start = jax.tree.map(np.asarray, state)
  step = blueprint.make_step(config, recipe, mesh, like)
  batches = pipeline.batches(open_source(config), seed=config.seed, batch=config.train.batch,
                             start=first * config.train.batch)
  found = []
  for _ in range(count):
    state, health = step(state, sharding.place_batch(next(batches), mesh))
    found.append(float(health.loss))
  batches.close()
  return start, np.array(found), state


ELASTIC = {
    'mlp': ('toy', 'flow', [(4, dict(data=2, fsdp=2))]),
    'mlp on others': ('toy', 'flow', [(2, dict(data=2)), (8, dict(data=8)), (8, dict(data=1, fsdp=8))]),
    'dit': ('digits', 'flow', [(8, dict(data=2, fsdp=2, tensor=2))]),
    'edm2': ('digits', 'edm2', [(8, dict(data=2, fsdp=2, tensor=2))]),
}


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.long] * (name != 'mlp')) for name in ELASTIC])
def test_training_continues_alike_on_any_mesh(name, tmp_path):
  file, variant, meshes = ELASTIC[name]
  config = _config(file, variant, 64)
  alone = sharding.device_mesh(jax.devices()[:1])
  _, _, state = _losses(config, alone, count=5)
  with checkpoint.open_checkpoints(tmp_path, keep=None) as checkpoints:
    checkpoints.save(state)
  start, expected, end = _losses(config, alone, state, first=5)
  for devices, sizes in meshes:
    mesh = sharding.device_mesh(jax.devices()[:devices], **dict(data=1) | sizes)
    like = blueprint.first_state(config, recipes.recipe(config), mesh)
    with checkpoint.open_checkpoints(tmp_path, keep=None) as checkpoints:
      restored = checkpoints.restore(like)
    jax.tree.map(np.testing.assert_array_equal, start, jax.tree.map(np.asarray, restored))
    assert [a.sharding for a in jax.tree.leaves(restored)] == [
        a.sharding for a in jax.tree.leaves(like)]
    _, found, other = _losses(config, mesh, restored, first=5)
    # A small gain hides wrong gradients of the factor it multiplies, so compare moments too.
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(end.opt_state),
                            jax.tree.leaves(other.opt_state)):
      a, b = np.asarray(a), np.asarray(b)
      assert abs(a - b).max(initial=0) <= 1e-2 * abs(a).max(initial=0), (
          f'on {sizes} {jax.tree_util.keystr(path)} differs')
    worst = abs(found / expected - 1).max()
    print(name, sizes, f'{worst:.1e}')
    assert worst < 1e-6, f'on {sizes} the losses of 50 steps differ by {worst:.1e}'
