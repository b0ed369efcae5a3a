"""What a plan says is what is: bytes of live arrays, FLOPs and exchanges counted by hand."""

import json
import math
import subprocess
import sys

import jax
from jax import numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np
import pytest

from eqflow.commands import plan
from eqflow.config import recipes
from eqflow.planning import chips, collectives, flops, hlo, report, topologies
from eqflow.runs import blueprint, run
from eqflow.training import sharding
from tests import config_file
from tests import ROOT
from tests.rejected import rejected


def floats(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def convolved(**options):
  return lambda x, w: jax.lax.conv_general_dilated(
      x, w, **options, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


@pytest.mark.parametrize('function,args,expected', [
    (jnp.matmul, (floats(3, 4), floats(4, 5)), 2 * 3 * 4 * 5),
    (jnp.matmul, (floats(7, 3, 4), floats(7, 4, 5)), 7 * 2 * 3 * 4 * 5),
    (lambda a, b: jax.lax.scan(lambda c, _: (c @ b, None), a, length=7)[0],
     (floats(3, 4), floats(4, 4)), 7 * 2 * 3 * 4 * 4),
    (lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b @ b, lambda: a @ b),
     (floats(3, 4), floats(4, 4)), 2 * 2 * 3 * 4 * 4),
    (jax.jit(lambda a, b: jax.nn.silu(a) @ b), (floats(3, 4), floats(4, 5)), 2 * 3 * 4 * 5),
    # The backward pass of sin(a b) makes a b once more, and one product for each gradient.
    (jax.grad(jax.checkpoint(lambda a, b: jnp.sin(a @ b).sum()), (0, 1)),
     (floats(3, 4), floats(4, 5)), 4 * 2 * 3 * 4 * 5),
    # A kernel of 3 on 5 places padded by 1 meets 3 of them thrice, both ends twice.
    (convolved(window_strides=(1, 1), padding='SAME'), (floats(2, 5, 5, 3), floats(3, 3, 3, 8)),
     2 * 2 * 8 * 3 * 13**2),
    # Of 6 places, those of stride 2 unpadded but at the end: 0 1 2, 2 3 4, 4 5.
    (convolved(window_strides=(2, 2), padding='SAME'), (floats(2, 6, 6, 3), floats(3, 3, 3, 8)),
     2 * 2 * 8 * 3 * 8**2),
    (convolved(window_strides=(1, 1), padding='VALID', feature_group_count=4),
     (floats(2, 5, 5, 4), floats(3, 3, 1, 8)), 2 * 2 * 8 * 3**2 * 3**2),
], ids=['dot', 'batched', 'scan', 'cond', 'jit', 'remat', 'padded', 'strided', 'grouped'])
def test_flops_are_those_counted_by_hand(function, args, expected):
  assert flops.flops(function, *args) == expected


@pytest.mark.parametrize('options', [
    dict(window_strides=(2, 2), padding='SAME'), dict(window_strides=(1, 1), padding='SAME'),
    dict(window_strides=(1, 1), padding='VALID', rhs_dilation=(2, 2)),
    dict(window_strides=(2, 2), padding='SAME', feature_group_count=2),
    dict(window_strides=(1, 1), padding=((2, 1), (1, 2)), lhs_dilation=(2, 2))], ids=str)
def test_each_gradient_of_a_convolution_costs_what_it_does(options):
  groups = options.get('feature_group_count', 1)
  f, args = convolved(**options), (floats(2, 9, 9, 4), floats(3, 3, 4 // groups, 8))
  one = flops.flops(f, *args)
  assert one == jax.jit(f).lower(*args).compile().cost_analysis()['flops']
  for i in (0, 1):
    gradient = jax.grad(lambda *args: f(*args).sum(), i)
    assert flops.flops(gradient, *args) == 2 * one, f'of argument {i}, beside the convolution itself'


def test_what_every_device_does_counts_once_for_each():
  mesh = mesh_of(4, 2)
  spec = PartitionSpec('data')
  f = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec)
  # Over data split, over fsdp done by both.
  assert flops.flops(f, floats(8, 4), floats(4, 5)) == 2 * (2 * 8 * 4 * 5)


def mesh_of(*sizes):
  sizes += (1,) * (3 - len(sizes))
  devices = np.array(jax.devices()[:math.prod(sizes)]).reshape(sizes)
  return Mesh(devices, ('data', 'fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 3)


def exchanged(function, mesh, *args, out):
  """The collectives of function(*args), each a shape and its spec, with the result placed by out."""
  place = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))
  given = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place(*spec)) for shape, spec in args]
  text = jax.jit(function, out_shardings=place(*out)).lower(*given).compile().as_text()
  return collectives.found(hlo.parse(text), dict(mesh.shape))


def loss(w, x):
  return jnp.tanh(x @ w).sum()


def test_a_gradient_is_summed_over_the_devices_that_split_the_batch():
  found = exchanged(jax.grad(loss), mesh_of(8), ((32, 16), ()), ((64, 32), ('data',)), out=())
  [one] = found
  assert (one.kind, one.size, one.axes, one.times) == ('all-reduce', 4 * 32 * 16, ('data',), 1)
  assert collectives.by_axis(found) == {'data': dict(
      count=1, bytes=2048, moved=2 * 2048 * 7 / 8, kinds={'all-reduce': 2048})}


def test_a_parameter_in_parts_is_gathered_along_fsdp_alone():
  found = exchanged(lambda w, x: jnp.tanh(x @ w), mesh_of(4, 2), ((32, 16), ('fsdp',)),
                    ((4096, 32), ('data',)), out=('data',))
  gathers = [one for one in found if one.kind == 'all-gather']
  assert [(one.size, one.axes) for one in gathers] == [(4 * 32 * 16, ('fsdp',))]
  assert sorted(map(sorted, gathers[0].groups.tolist())) == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_what_a_loop_exchanges_counts_each_time():
  def descended(w, x):
    return jax.lax.scan(lambda w, x: (w - jax.grad(loss)(w, x), None), w, x)[0]
  found = exchanged(descended, mesh_of(8), ((32, 16), ()), ((5, 64, 32), (None, 'data')), out=())
  assert sum(one.times * one.size for one in found if one.kind == 'all-reduce') == 5 * 4 * 32 * 16


LINE = '  %a = f32[64]{0} all-reduce(%p), replica_groups=GROUPS, use_global_device_ids=true'


@pytest.mark.parametrize('written,groups', [
    ('{{0,2,4,6},{1,3,5,7}}', [[0, 2, 4, 6], [1, 3, 5, 7]]),
    ('{}', [list(range(8))]),
    ('[4,2]<=[8]', [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ('[2,4]<=[4,2]T(1,0)', [[0, 2, 4, 6], [1, 3, 5, 7]]),
    ("mesh['a'=4,'b'=2] {'b'}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ("mesh['a'=4,'b'=2] {'a'}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
    ("mesh['a'=2,'b'=1,'c'=4], device_ids=([4,2]T(1,0)) {'a'}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ("mesh['a'=8] {'a':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
])
def test_groups_are_read_however_they_are_written(written, groups):
  text = '\n'.join(('ENTRY %main (p: f32[64]) -> f32[64] {', '  %p = f32[64]{0} parameter(0)',
                    LINE.replace('GROUPS', written), '}'))
  [one] = collectives.found(hlo.parse(text), dict(data=4, fsdp=2, tensor=1))
  assert sorted(map(sorted, one.groups.tolist())) == groups
  assert one.size == 256


def test_what_starts_and_ends_apart_counts_once_and_tuples_whole():
  text = '''ENTRY %main (p: f32[8], q: bf16[4]) -> (f32[8], bf16[4]) {
  %p = f32[8]{0} parameter(0)
  %q = bf16[4]{0:T(256)(128)(2,1)S(1)} parameter(1)
  %s = (f32[8]{0}, /*index=1*/bf16[4]{0:T(256)(128)(2,1)}) all-reduce-start(%p, %q), replica_groups={}
  ROOT %d = (f32[8]{0}, bf16[4]{0}) all-reduce-done(%s)
}'''
  [one] = collectives.found(hlo.parse(text), dict(data=2))
  assert (one.kind, one.size) == ('all-reduce', 8 * 4 + 4 * 2)
  assert hlo.traffic(hlo.parse(text)) == 2 * one.size
  assert hlo.traffic(hlo.parse(text), 'S(1)') == 2 * one.size - 4 * 2


@pytest.mark.parametrize('hosts,expected', [
    (1, 2 * 1e9 * 7 / 8 / 450e9),
    # Each of a host's 8 sends its eighth of the host's sum across, twice to 15 of 16.
    (16, 2 * 1e9 / 8 * 15 / 16 / 50e9)])
def test_hosts_exchange_only_what_theirs_have_in_common(hosts, expected):
  one = collectives.Collective('all-reduce', 10**9, np.arange(8 * hosts)[None], ('data',), 1)
  host_of = np.arange(8 * hosts) // 8
  assert plan.link_seconds(one, chips.CHIPS['h100'], host_of) == pytest.approx(expected)
  wired = plan.link_seconds(one, chips.CHIPS['v5p'], host_of)
  assert wired == collectives.moved('all-reduce', 10**9, 8 * hosts) / 600e9


TINY = dict(width=16, depth=1, heads=2)


def digits(**sections):
  config = config_file('digits').get_config()
  return plan.with_changes(config, **sections)


@pytest.fixture(scope='module')
def planned():
  """configs/digits.py on cpu:8: (its config, what the plan found)."""
  config = digits()
  return config, plan.compiled(config, topologies.of('cpu:8'))


def test_bytes_of_a_plan_are_those_of_the_arrays_on_a_device(planned):
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


@pytest.mark.parametrize('sections', [
    dict(model=dict(width=192, depth=2)), dict(mesh=dict(data=1, fsdp=8))], ids=['wide', 'fsdp'])
def test_the_compiler_counts_little_more_than_products(sections):
  # Beside products it counts elementwise work: a network as narrow as the digits' has more of it, and
  # by data every device does all of the optimizer's.
  config = digits(**sections)
  found = plan.compiled(config, topologies.of('cpu:8'))
  ratio = found['flops']['compiler'] / found['flops']['formula']
  assert 1 <= ratio <= 1.08, f'{ratio:.4f} of the products counted by hand'


def test_every_device_is_told_the_whole_gradient(planned):
  _, found = planned
  # Its norm, the loss and the error are a few scalars more.
  summed = found['collectives']['data']['kinds']['all-reduce']
  trained = found['state']['optimizer'] / 2
  assert 0 <= summed - trained < 64


def test_what_does_not_divide_is_told_once_for_all_blocks():
  # 1152 and 3456 do not divide by 256, 4608 and 6912 do: qkv and attended stay whole, others move.
  recipe = recipes.recipe(config_file('imagenet_dit').get_config('eqm_256'))
  mesh = Mesh(np.full((1, 256, 1), jax.devices()[0]), ('data', 'fsdp', 'tensor'))
  lost = plan.undivided(jax.eval_shape(recipe.model.init, jax.random.key(0)), recipe.model.rules, mesh)
  assert {'block*/qkv/kernel', 'block*/attended/kernel'} <= set(lost)
  assert not {'block*/up/kernel', 'block*/down/kernel', 'block*/modulation/kernel'} & set(lost)
  assert lost['block*/qkv/kernel'] == 'fsdp' and len(lost) < 10


def test_what_does_not_fit_is_told_with_what_makes_it_fit(monkeypatch):
  config, target = digits(), topologies.of('cpu:8')
  mesh = run.mesh_of(config, target.devices)
  _, (state, *_) = blueprint.step_and_shapes(config, recipes.recipe(config), mesh)
  sizes = plan.state_bytes(state)
  found = dict(state=sizes, mesh=dict(mesh.shape), bytes=dict(total=sum(sizes.values()) + 10**6))
  asked, told = [], []

  def smaller(config, target):
    asked.append((config.model.remat, config.train.accumulate))
    return dict(bytes=dict(total=found['bytes']['total'] // sum(asked[-1])))

  monkeypatch.setattr(plan, 'compiled', smaller)
  less = chips.Chip(found['bytes']['total'] - sizes['averages'] // 2, 1e12, 1e11, 1e10, None)
  rows = plan.tried(config, target._replace(chip=less), found, lambda line, **_: told.append(line))
  assert [(row['lever'], row['how']) for row in rows] == [
      ('config.mesh.fsdp=2', 'arithmetic'), ('1 average(s) fewer in config.ema', 'arithmetic'),
      ('config.model.remat=True', 'compiled'), ('config.train.accumulate=2', 'compiled'),
      ('config.train.accumulate=8', 'compiled'),
      ('config.model.remat=True and config.train.accumulate=8', 'compiled')]
  assert rows[0]['fits'] and rows[1]['fits'] and rows[3]['fits']
  assert rows[1]['total'] == found['bytes']['total'] - sizes['averages']
  assert asked == [(True, 1), (False, 2), (False, 8), (True, 8)]
  assert 'left' in told[0]


def test_room_that_a_library_asks_for_is_no_traffic():
  text = '''
ENTRY %main {
  %a = f32[4,8]{1,0} parameter(0)
  %b = s8[8,16]{1,0} parameter(1)
  %dot = (f32[4,16]{1,0}, s8[33554432]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul"
  %own = (f32[4,16]{1,0}, s8[64]{0}) custom-call(%a, %b), custom_call_target="mine"
}'''
  read, made = 4 * 4 * 8 + 8 * 16, 4 * 4 * 16
  assert hlo.traffic(hlo.parse(text)) == 2 * (read + made) + 64


def test_a_lever_that_is_none_for_a_config_is_told_and_passed_over(monkeypatch):
  config, target = digits(loss=dict(dispersive=0.5)), topologies.of('cpu:8')
  found = dict(mesh=dict(data=8, fsdp=1, tensor=1))
  assert [words for words, _ in plan._activation_levers(config, found)] == ['config.model.remat=True']

  def refused(config, target):
    raise ValueError('not so')
  monkeypatch.setattr(plan, 'compiled', refused)
  told = []
  sizes = dict(parameters=8, optimizer=8, averages=8)
  less = target._replace(chip=chips.Chip(20, 1e12, 1e11, 1e10, None))
  plan.tried(config, less, found | dict(state=sizes, bytes=dict(total=100)),
             lambda line, **_: told.append(line))
  assert told[-1] == '  config.model.remat=True: not so'


def test_devices_that_would_all_compute_the_same_are_refused():
  config = config_file('toy').get_config()
  config.mesh.tensor = 2
  with pytest.raises(ValueError, match='config.mesh.tensor=2: no layer of this network is cut'):
    plan.compiled(config, topologies.of('cpu:8'))


@pytest.mark.parametrize('now,most,expected', [(1, 24, [2, 3, 4, 6, 8, 12, 24]), (4, 16, [8, 16]),
                                               (3, 3, [])])
def test_parameters_are_cut_into_any_number_that_the_devices_divide_by(now, most, expected):
  assert plan._more(now, most) == expected


def test_what_training_refuses_is_not_planned(monkeypatch):
  config, target = digits(sample=dict(batch=9)), topologies.of('cpu:8')
  with rejected('sample.batch', 9, 8):
    plan.compiled(config, target)
  monkeypatch.setattr(plan.sharding, 'own_rows', lambda mesh: (0, 2))
  config = digits(loss=dict(dispersive=0.5), train=dict(accumulate=2))
  with rejected('loss.dispersive', 2, 'accumulate=1'):
    plan.compiled(config, target)


@pytest.mark.parametrize('said', [
    'Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G.',
    'E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO temporaries '
    '(20.50G) exceeds available HBM (15.75G). HLO module: jit_step.'])
def test_what_a_compiler_refuses_to_fit_is_told_by_how_much(said):
  found = dict(topology='v5e:2x2', devices=4, mesh=dict(data=4, fsdp=1, tensor=1), batch=8,
               accumulate=1, remat=False, undivided={}, chip=chips.CHIPS['v5e']._asdict(),
               state=dict(parameters=2**30, optimizer=2**31, averages=2**30, other=0))
  found |= plan._refused(jax.errors.JaxRuntimeError(said), 4 * 10**12, found)
  assert found['bytes']['total'] == 20.5 * 2**30 and not found['fits']
  assert 'does not fit, by 4.75 GiB' in report.text(found)
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
    plan._refused(jax.errors.JaxRuntimeError('INTERNAL: else'), 1, found)


@pytest.mark.parametrize('name,words', [
    ('v9:4x4', r"give a chip of \['cpu', 'h100'.*such as v5e:4x4"),
    ('v5e', 'the shape of the slice'), ('v5e:4by4', 'the shape of the slice'), ('', 'give a chip'),
    ('v5e:4x4x4', 'a slice of v5e has 2 sides and at most 256 chips'),
    ('v5e:32x32', 'at most 256 chips'),
    ('v5p:4x4', 'a slice of v5p has 3 sides'),
    ('h100:8', 'h100:1x8x8 for eight hosts of eight'), ('cpu:2x4', 'give their number, as cpu:8'),
    ('cpu:99', 'JAX_NUM_CPU_DEVICES=99')])
def test_a_topology_that_is_none_is_refused_with_what_is(name, words):
  assert len(jax.devices()) == 8, 'who asks first may still choose'
  with pytest.raises(ValueError, match=words):
    topologies.of(name)


@pytest.mark.parametrize('name', ['v5e:2x2', 'h100:1x1x4'])
def test_a_compiler_that_is_missing_is_named_with_its_extra(name, monkeypatch):
  monkeypatch.setattr(topologies, '_installed', lambda package: False)
  with pytest.raises(ValueError, match=r"pip install -e '\.\[aot\]'"):
    topologies.of(name)


@pytest.mark.parametrize('name', ['v5e:4x4', 'v5p:4x4x4', 'v5p:2x2x2', 'v6e:4x4'])
@pytest.mark.parametrize('sizes', [dict(fsdp=2), dict(fsdp=8), dict(fsdp=2, tensor=2)], ids=str)
def test_a_slice_of_any_kind_is_a_mesh_of_any_sizes(name, sizes):
  pytest.importorskip('libtpu')
  target = topologies.of(name)
  mesh = sharding.device_mesh(target.devices, **sizes)
  assert set(mesh.devices.flat) == set(np.ravel(target.devices))
  assert mesh.shape['fsdp'] == sizes['fsdp']


@pytest.mark.parametrize('name,package', [('v5e:2x2', 'libtpu'),
                                          ('h100:1x1x4', 'jax_plugins.xla_cuda12')])
def test_a_step_is_compiled_for_devices_that_are_not_there(name, package):
  pytest.importorskip(package)
  config = digits(model=TINY)
  found = plan.compiled(config, topologies.of(name))
  assert found['fits'] and found['devices'] == 4
  exchanges = found['collectives']['data']
  # The compiler may send half the bytes of a gradient, never fewer.
  assert exchanges['bytes'] >= found['state']['optimizer'] / 4
  assert found['seconds']['step'] > 0 and 'fits' in report.text(found)


def test_the_command_plans_without_data_or_folder(tmp_path):
  flags = ['--config=configs/digits.py', '--mode=plan', '--topology=cpu:8', '--config.model.width=16',
           '--config.model.depth=1', '--config.model.heads=2', '--config.data.dir=/nowhere']
  done = subprocess.run([sys.executable, '-m', 'eqflow.main', *flags, f'--workdir={tmp_path / "plan"}'],
                        cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr[-2000:]
  assert done.stdout.startswith('cpu:8: 8 devices as data 8') and 'FLOPs of a step' in done.stdout
  found = json.loads((tmp_path / 'plan/plan.json').read_text())
  assert found['bytes']['total'] > sum(found['state'].values()) > 0


@pytest.mark.parametrize('size,told', [(0, '0 B'), (1023, '1,023 B'), (2**20, '1 MiB'),
                                       (2.51 * 2**30, '2.51 GiB')])
def test_bytes_are_told_in_the_unit_that_suits_them(size, told):
  assert report.amount(size) == told
