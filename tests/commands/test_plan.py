"""Plans against bytes of live arrays and counts by hand, and the changes that make a step fit."""

import json
import subprocess
import sys

import jax
from jax import numpy as jnp
from jax.sharding import Mesh
import numpy as np
import pytest

from eqflow.commands import plan
from eqflow.config import recipes
from eqflow.planning import chips, costs, report, topologies
from eqflow.runs import blueprint, run
from tests import ROOT, config_file
from tests.rejected import rejected


TINY = dict(width=16, depth=1, heads=2)


def digits(**sections):
  config = config_file('digits').get_config()
  return plan.with_changes(config, **sections)


@pytest.fixture(scope='module')
def planned():
  """configs/digits.py with a small network on cpu:8: (its config, its plan)."""
  config = digits(model=TINY)
  return config, plan.compiled(config, topologies.of('cpu:8'))


@pytest.mark.long
def test_bytes_of_a_plan_equal_the_bytes_of_live_arrays(planned):
  config, found = planned
  mesh = run.mesh_of(config, jax.devices()[:8])
  step, shapes = blueprint.step_and_shapes(config, recipes.recipe(config), mesh)
  live = jax.tree.map(lambda a: jax.device_put(jnp.zeros(a.shape, a.dtype), a.sharding), shapes)
  given = bytes_of(live)
  state = bytes_of(live[0])
  program = step.lower(*live).compile()
  outputs = bytes_of(program(*live))
  assert found['bytes']['arguments'] == given
  assert found['bytes']['outputs'] == outputs
  assert sum(found['state'].values()) == state


def bytes_of(tree):
  return sum(shard.data.nbytes for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards
             if shard.device == jax.devices()[0])


@pytest.mark.long
@pytest.mark.parametrize('sections', [
    dict(model=dict(width=192, depth=2)), dict(mesh=dict(data=1, fsdp=8))], ids=['wide', 'fsdp'])
def test_the_compilers_count_is_close_to_the_formula(sections):
  # It also counts elementwise work: a network as narrow as the digits' has more of it, and with data
  # parallelism every device runs the whole optimizer.
  config = digits(**sections)
  found = plan.compiled(config, topologies.of('cpu:8'))
  ratio = found['flops']['compiler'] / found['flops']['formula']
  assert 1 <= ratio <= 1.08, f'{ratio:.4f} of the formula'


def test_the_whole_gradient_is_reduced_across_devices(planned):
  _, found = planned
  # The norm, the loss and the error are a few more scalars.
  summed = found['collectives']['data']['kinds']['all-reduce']
  trained = found['state']['optimizer'] / 2
  assert 0 <= summed - trained < 64


def test_parameters_that_stay_whole_are_reported_once_for_all_blocks():
  # 1152 and 3456 do not divide by 256, 4608 and 6912 do: qkv and attended stay whole.
  recipe = recipes.recipe(config_file('imagenet_dit').get_config('eqm_256'))
  mesh = Mesh(np.full((1, 256, 1), jax.devices()[0]), ('data', 'fsdp', 'tensor'))
  lost = plan.undivided(jax.eval_shape(recipe.model.init, jax.random.key(0)), recipe.model.rules, mesh)
  assert {'block*/qkv/kernel', 'block*/attended/kernel'} <= set(lost)
  assert not {'block*/up/kernel', 'block*/down/kernel', 'block*/modulation/kernel'} & set(lost)
  assert lost['block*/qkv/kernel'] == 'fsdp' and len(lost) < 10


def test_changes_that_make_a_step_fit_are_tried_in_order(monkeypatch):
  config, target = digits(), topologies.of('cpu:8')
  mesh = run.mesh_of(config, target.devices)
  _, (state, *_) = blueprint.step_and_shapes(config, recipes.recipe(config), mesh)
  sizes = costs.state_bytes(state)
  found = dict(state=sizes, mesh=dict(mesh.shape), bytes=dict(total=sum(sizes.values()) + 10**6))
  asked, lines = [], []

  def smaller(config, target):
    asked.append((config.model.remat, config.train.accumulate))
    return dict(bytes=dict(total=found['bytes']['total'] // sum(asked[-1])))

  monkeypatch.setattr(plan, 'compiled', smaller)
  less = chips.Chip(found['bytes']['total'] - sizes['averages'] // 2, 1e12, 1e11, 1e10, None)
  rows = plan.tried(config, target._replace(chip=less), found, lambda line, **_: lines.append(line))
  assert [(row['lever'], row['how']) for row in rows] == [
      ('config.mesh.fsdp=2', 'arithmetic'), ('1 average(s) fewer in config.ema', 'arithmetic'),
      ('config.model.remat=True', 'compiled'), ('config.train.accumulate=2', 'compiled'),
      ('config.train.accumulate=8', 'compiled'),
      ('config.model.remat=True and config.train.accumulate=8', 'compiled')]
  assert rows[0]['fits'] and rows[1]['fits'] and rows[3]['fits']
  assert rows[1]['total'] == found['bytes']['total'] - sizes['averages']
  assert asked == [(True, 1), (False, 2), (False, 8), (True, 8)]
  assert 'left' in lines[0]


def test_a_change_that_the_config_rejects_is_skipped(monkeypatch):
  config, target = digits(loss=dict(dispersive=0.5)), topologies.of('cpu:8')
  found = dict(mesh=dict(data=8, fsdp=1, tensor=1))
  assert [name for name, _ in plan._activation_levers(config, found)] == ['config.model.remat=True']

  def rejects(config, target):
    raise ValueError('not so')
  monkeypatch.setattr(plan, 'compiled', rejects)
  lines = []
  sizes = dict(parameters=8, optimizer=8, averages=8)
  less = target._replace(chip=chips.Chip(20, 1e12, 1e11, 1e10, None))
  plan.tried(config, less, found | dict(state=sizes, bytes=dict(total=100)),
             lambda line, **_: lines.append(line))
  assert lines[-1] == '  config.model.remat=True: not so'


def test_a_tensor_axis_that_no_layer_uses_is_rejected():
  config = config_file('toy').get_config()
  config.mesh.tensor = 2
  with pytest.raises(ValueError, match='config.mesh.tensor=2'):
    plan.compiled(config, topologies.of('cpu:8'))


@pytest.mark.parametrize('now,most,expected', [(1, 24, [2, 3, 4, 6, 8, 12, 24]), (4, 16, [8, 16]),
                                               (3, 3, [])])
def test_larger_fsdp_axes_are_the_divisors_of_the_devices(now, most, expected):
  assert plan._more(now, most) == expected


def test_configs_that_training_rejects_are_not_planned(monkeypatch):
  config, target = digits(sample=dict(batch=9)), topologies.of('cpu:8')
  with rejected('sample.batch', 9, 8):
    plan.compiled(config, target)
  monkeypatch.setattr(plan.sharding, 'own_rows', lambda mesh: (0, 2))
  config = digits(loss=dict(dispersive=0.5), train=dict(accumulate=2))
  with rejected('loss.dispersive', 2, 'accumulate=1'):
    plan.compiled(config, target)


@pytest.mark.parametrize('name', [
    pytest.param('v5e:2x2', marks=pytest.mark.needs('libtpu')),
    pytest.param('h100:1x1x4', marks=pytest.mark.needs('jax_cuda12_plugin'))])
def test_a_step_is_compiled_for_absent_devices(name):
  config = digits(model=TINY)
  found = plan.compiled(config, topologies.of(name))
  assert found['fits'] and found['devices'] == 4
  exchanges = found['collectives']['data']
  # The compiler may send half the bytes of a gradient, never fewer.
  assert exchanges['bytes'] >= found['state']['optimizer'] / 4
  assert found['seconds']['step'] > 0 and 'fits' in report.text(found)


@pytest.mark.long
def test_the_command_needs_no_data(tmp_path):
  flags = ['--config=configs/digits.py', '--mode=plan', '--topology=cpu:8', '--config.model.width=16',
           '--config.model.depth=1', '--config.model.heads=2', '--config.data.dir=/nowhere']
  done = subprocess.run([sys.executable, '-m', 'eqflow.main', *flags, f'--workdir={tmp_path / "plan"}'],
                        cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr[-2000:]
  assert done.stdout.startswith('cpu:8: 8 devices as data 8') and 'FLOPs of a step' in done.stdout
  found = json.loads((tmp_path / 'plan/plan.json').read_text())
  assert found['bytes']['total'] > sum(found['state'].values()) > 0
