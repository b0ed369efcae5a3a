"""Configs become functions, every one of them; what does not fit is refused by name."""

import jax
from jax import numpy as jnp
import ml_collections
import numpy as np
import pytest

from eqflow import fields, outputs, processes
from eqflow.config import recipes, samplings, schema, tables
from eqflow.training import nonfinite, sharding, train_state, train_step
from tests import ROOT
from tests import config_file as load
from tests import rows

# Of ImageNet's, which differ in width alone, the smallest.
ALL = [pytest.param(path.stem, variant, marks=[pytest.mark.long] * (
    'imagenet' in path.stem and i > 0)) for path in sorted((ROOT / 'configs').glob('*.py'))
       for i, variant in enumerate(load(path.stem).VARIANTS)]


@pytest.mark.parametrize('name,variant', ALL)
def test_every_config_and_variant_builds_and_traces_a_step(name, variant):
  config = load(name).get_config(variant).lock()
  recipe = recipes.recipe(config)
  mesh = sharding.device_mesh(jax.devices()[:1])
  step = train_step.make_step(recipe.loss, recipe.optimizer, recipe.share, mesh, measure=recipe.measure,
                         prepare=recipe.prepare)
  def run(key, batch):
    params = recipe.init(key)
    state = train_state.TrainState(
        seed=jnp.uint32(0), step=jnp.int32(0), examples=jnp.uint32(0), params=params,
        opt_state=recipe.optimizer.init(params), emas={k: params for k in recipes.ema_names(config)},
        histogram=recipe.histogram, guard=nonfinite.start())
    state, metrics, health = step(state, train_state.TrainMetrics.empty(), batch)
    draws, *_ = recipe.draw(params, jax.random.split(key, 2), batch['label'][:2])
    return state, metrics, health, draws
  b, shape = config.train.batch, tuple(config.data.shape)
  batch = {'x': jax.ShapeDtypeStruct((b, *shape), jnp.float32),
           'label': jax.ShapeDtypeStruct((b,), jnp.int32),
           'index': jax.ShapeDtypeStruct((b,), jnp.uint32)}
  if config.loss.coupling.name != 'independent':
    batch['eps'] = batch['x']
  state, _, health, draws = jax.eval_shape(run, jax.random.key(0), batch)
  assert health.shape == (4,) and draws.shape == (2, *shape)
  assert state.examples.dtype == jnp.uint32


def test_every_row_of_the_tables_is_held_to_the_laws():
  assert set(tables.PROCESSES) <= set(rows.PROCESSES)
  assert set(tables.OUTPUTS) <= {name.split('_')[0] for name in rows.OUTPUTS}
  assert set(tables.DECAYS) <= set(rows.DECAYS)


def _changed(path, value, name='digits', variant=None):
  config = load(name).get_config(*([variant] if variant else []))
  *parents, key = path.split('.')
  section = config
  for parent in parents:
    section = section[parent]
  # A number for each channel stands where the config has one for all.
  with section.unlocked(), section.ignore_type():
    section[key] = value
  return config


REFUSED = [
    ('process.name', 'linaer', r"process.name='linaer': choose from \['cosine', 'discrete', 'edm'"),
    ('process.beta_min', 0.1, r"config.process.beta_min: 'linear' takes no numbers"),
    ('output.name', 'V', r"config.output.name='V': choose from"),
    ('output.gain', 4.0, r"config.output.gain: 'equilibrium' takes \['decay'\]"),
    ('output.decay.name', 'cut', r"config.output.decay.name='cut': choose from \['constant'"),
    ('output.decay', dict(name='truncated'),
     r"config.output.decay: 'truncated' also needs \['start'\]"),
    ('loss.density.name', 'beta', r"config.loss.density.name='beta': choose from"),
    ('loss.weight.name', 'snr', r"config.loss.weight.name='snr': choose from"),
    ('loss.coupling.name', 'optimal', r"config.loss.coupling.name='optimal': choose from"),
    ('loss.coupling', dict(name='sinkhorn'),
     r"config.loss.coupling: 'sinkhorn' also needs \['regularization'\]"),
    ('loss.coupling.name', 'pairs', r"config.data.name='digits' has no noise of its own: set it to"),
    ('loss.coupling.group', 1, r"config.loss.coupling.group: 'independent' takes no numbers"),
    ('loss.density', dict(name='mode', scale=3.0),
     r"config.loss.density: mode\(3.0\): choose a scale from -1 to"),
    ('loss.density', dict(name='adaptive', low=-10.0, high=10.0, bins=100, keep=0.999),
     r"config.loss.weight.name='ones' with config.loss.density.name='adaptive': the objective would "
     r"change with the density; choose 'on_logsnr'"),
    ('loss.density', dict(name='adaptive', low=10.0, high=-10.0),
     r"config.loss.density: adaptive\(low=10.0, high=-10.0, bins=100, keep=0.999\): low must be below"),
    ('loss.density', dict(name='adaptive', low=-10.0, high=10.0, half_life=9.0),
     r"config.loss.density.half_life: 'adaptive' takes \['bins', 'high', 'keep', 'low'\]"),
    ('loss.weight', dict(name='on_logsnr', w=dict(name='sd4')),
     r"config.loss.weight.w.name='sd4': choose from \['edm', 'elbo', 'flow_matching'"),
    ('loss.space', 'edm', r"config.loss.space='edm' has numbers of its own"),
    ('model.name', 'unet',
     r"config.model.name='unet': choose from \['DiT-B/2',.*'dit', 'edm2', 'mlp'\]"),
    ('model.widht', 3, r"config.model.widht: 'dit' takes \["),
    ('model.dtype', 'half', r"config.model.dtype='half': choose from"),
    ('model.label_noise.name', 'tiem', r"config.model.label_noise.name='tiem': choose from"),
    ('model.label_noise.name', 'time',
     r"descends a field that may not depend on time.*train with 'none'"),
    ('sample.solver.name', 'dimm', r"config.sample.solver.name='dimm': choose from"),
    ('sample.solver.momentum', 0.3, r"config.sample.solver.momentum: 'gradient_descent' takes"),
    ('sample.num_steps', 0, r"config.sample.num_steps=0: give a finite number from 1 to 2147483647"),
    ('sample.params', '0.99', r"config.sample.params='0.99': choose from \['params', '0.999'\]"),
    ('ema.decays', (1.5,), r"config.ema.decays=1.5: give a finite number from"),
    ('ema.decays', ('a',), r"config.ema.decays='a': give a finite number"),
    ('optimizer.rate', float('nan'), r"config.optimizer.rate=nan: give a finite number"),
    ('optimizer.b1', 1.5, r"config.optimizer.b1=1.5: give a finite number from 0 to"),
    ('seed', -1, r"config.seed=-1: give a finite number from 0 to 4294967295"),
    ('seed', 5_000_000_000, r"config.seed=5000000000: give a finite number"),
    ('train.num_examples', 2**32, r"config.train.num_examples=4294967296: give a finite number"),
    ('model.width', -16, r"config.model.width=-16: give a finite number"),
    ('model.heads', 3, r"config.model: width=64 is not divisible by heads=3"),
    ('model.patch', 3, r"config.model: an image of 8x8 has no whole number of patches"),
    ('data.workers', -1, r"config.data.workers=-1: give a finite number from 0 to 1024"),
    ('data.shape', ('8', '8', '1'), r"config.data.shape='8': give a finite number"),
    ('sample.threshold', -1.0, r"config.sample.threshold=-1.0: give a finite number of 0"),
    ('sample.batch', 0, r"config.sample.batch=0: give a finite number from 1"),
    ('evaluate.num_samples', 2, r"config.evaluate.num_samples=2: give a finite number from 4"),
    ('process', dict(name='shifted', process='linear', shift=2.0),
     r"config.process.process='linear' is not a section: write \{'name': one of"),
    ('process', dict(name='shifted', process=dict(name='linear'), shift='a'),
     r"config.process.shift='a': give a finite number"),
    ('loss.weight', dict(name='on_logsnr', w=dict(name='sigmoid', bias='a')),
     r"config.loss.weight.w.bias='a': give a finite number"),
    ('output', dict(name='score'), r"descends to where the field vanishes, but "
     r"config.output.name='score' does not at data: train one of \['equilibrium', 'u'"),
    ('optimizer.rate', -1.0, r"config.optimizer.rate=-1.0: give a finite number of 0 or more"),
    ('optimizer.schedule.name', 'linear', r"config.optimizer.schedule.name='linear': choose from"),
    ('sample.scale', float('inf'), r"config.sample.scale=inf: give a finite number"),
    ('sample.scale', 'strong', r"config.sample.scale='strong': give a finite number"),
    ('sample.scale', (float('nan'),), r"config.sample.scale\[0\]=nan: give a finite number"),
    ('sample.scale', (2.0, 1.0), r"config.sample.scale=\(2.0, 1.0\) has 2 numbers, but "
     r"config.data.shape=\(8, 8, 1\): give one for each entry of its last axis"),
    ('sample.scale', (), r"config.sample.scale=\(\) has 0 numbers, but config.data.shape"),
    ('sample.rescale', 1.5, r"config.sample.rescale=1.5: give a finite number from 0 to 1"),
    ('sample.interval', dict(name='sigma'), r"interval.name='sigma': choose from \['always', 'logsnr'"),
    ('sample.interval', dict(name='time', low=0.1), r"interval: 'time' also needs \['high'\]"),
    ('sample.interval', dict(name='time', low=0.5, high=0.1),
     r"config.sample.interval: an interval from 0.5 to 0.1 is empty"),
    ('sample.interval', dict(name='time', low=0.1, high=float('nan')),
     r"config.sample.interval.high=nan: give a finite number"),
    ('sample.interval', dict(name='time', low=0.1, high=0.5),
     r"config.sample.interval.name='time': a descent has no time"),
    ('train.drop_label', 2.0, r"config.train.drop_label=2.0: give a finite number from 0 to 1"),
]


@pytest.mark.parametrize('path,value,message', REFUSED, ids=lambda v: str(v)[:24])
def test_bad_values_are_refused_by_key_with_what_is_allowed(path, value, message):
  with pytest.raises(ValueError, match=message):
    recipes.recipe(_changed(path, value))


def test_the_published_sizes_are_rows():
  section = ml_collections.ConfigDict(dict(name='DiT-XL/2', doubled=True))
  module = recipes.model(section, 1000)
  shapes = jax.eval_shape(lambda key: module.init(key, jnp.zeros((1, 32, 32, 4)), jnp.zeros(1)),
                          jax.random.key(0))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 675_129_632


def test_an_output_that_is_blind_on_the_grid_is_refused_when_built():
  grid = dict(name='uniform', start=1.0, end=0.0)
  refusal = "config.sample.grid: output 'eps' cannot give x at t=1: start the grid at"
  with pytest.raises(ValueError, match=refusal):
    recipes.recipe(_changed('sample.grid', grid, variant='eps'))
  with pytest.raises(ValueError, match="noise label 'logsnr' is not finite at t=1"):
    recipes.recipe(_changed('model.label_noise.name', 'logsnr', variant='flow'))


@pytest.mark.parametrize('variant', ['eqm', 'flow'])
def test_a_network_that_computes_in_bfloat16_trains_and_samples_in_float32(variant):
  config = _changed('model.dtype', 'bfloat16', variant=variant)
  recipe = recipes.recipe(config)
  params = recipe.init(jax.random.key(0))
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  keys = jax.random.split(jax.random.key(0), 4)
  batch = {'x': jnp.zeros((4, 8, 8, 1)), 'label': jnp.zeros(4, jnp.int32),
           'index': jnp.arange(4, dtype=jnp.uint32)}
  losses, _ = jax.eval_shape(recipe.loss, keys, params, batch)
  z, *_ = jax.eval_shape(recipe.draw, params, keys, batch['label'])
  assert losses.dtype == z.dtype == jnp.float32


def test_the_objective_is_the_same_whatever_an_adaptive_density_has_measured():
  recipe, n = recipes.recipe(load('toy').get_config('adaptive').lock()), 8192
  params, keys = recipe.init(jax.random.key(0)), jax.random.split(jax.random.key(1), n)
  batch = {'x': jax.random.normal(jax.random.key(2), (n, 2)), 'label': jnp.zeros(n, jnp.int32),
           'index': jnp.arange(n, dtype=jnp.uint32)}
  # As if the loss were far greater in the middle: more draws there, of less weight.
  bump = np.exp(-0.002 * (np.arange(100) - 50.0) ** 2) + 0.05
  loss = jax.jit(recipe.loss)
  even, aux = loss(keys, params, batch, recipe.histogram)
  peaked, moved = loss(keys, params, batch, 900 * jnp.stack([bump, jnp.ones(100)]))
  assert moved['logsnr'].std() < 0.8 * aux['logsnr'].std(), 'the density did not follow'
  error = np.hypot(even.std(), peaked.std()) / np.sqrt(n)
  assert abs(even.mean() - peaked.mean()) < 4 * error < 0.2 * even.mean()


def test_mirroring_is_for_images():
  with pytest.raises(ValueError, match='config.data.flip=True mirrors images, but'):
    recipes.recipe(_changed('data.flip', True, name='toy'))


def test_only_a_descent_has_a_threshold_and_only_classes_are_guided():
  with pytest.raises(ValueError, match='config.sample.threshold=1.0: only a descent'):
    recipes.recipe(_changed('sample.threshold', 1.0, variant='flow'))
  with pytest.raises(ValueError, match='config.sample.scale=2.0 guides by class'):
    recipes.recipe(_changed('sample.scale', 2.0, name='toy'))
  with pytest.raises(ValueError, match=r'config.sample.scale=\(2.0, 1.0\) guides by class'):
    recipes.recipe(_changed('sample.scale', [2, 1], name='toy'))
  recipes.recipe(_changed('sample.scale', (1, 1.0), name='toy'))


class Asked:
  """A closed-form network, (z, t, label) -> z - centre[label], that notes how many it is asked of."""
  CENTRES = np.array([[1.0, 2.0], [-3.0, 5.0], [0.5, -1.0]])

  def __init__(self):
    self.counts = []

  def __call__(self, params):
    return self.predict

  def predict(self, z, t, label):
    self.counts.append(len(z))
    return z - jnp.asarray(self.CENTRES, z.dtype)[label]


@pytest.mark.parametrize('scale,counts', [
    ((4.0, 1.0), [4]), ([4, 1], [4]), ((1.0, 1.0), [2]), ([1, 1], [2]), (4.0, [4])], ids=str)
def test_a_scale_for_each_channel_guides_each_by_its_own(scale, counts):
  config = load('toy').get_config('eqm')
  config.data.num_classes, config.train.drop_label = 2, 0.1
  with config.ignore_type():
    config.sample.scale = scale
  schema.check(config)
  network = Asked()
  sampling = samplings.sampling_of(config, network, processes.linear, outputs.u, fields.none)
  z, labels = np.array([[0.5, 0.25], [-1.0, 3.0]]), np.array([0, 1])
  found = sampling.predictor({}, jnp.asarray(labels))(jnp.asarray(z, jnp.float32), jnp.zeros(2))
  # y_null + w (y - y_null), entry by entry, the null class the one after the last.
  y, null = z - network.CENTRES[labels], z - network.CENTRES[2]
  np.testing.assert_allclose(found, null + np.array(scale) * (y - null), rtol=1e-6)
  assert network.counts == counts, 'a null branch costs as much as another sample'


def test_guidance_acts_in_its_interval_and_is_rescaled():
  def drawn(scale, rescale=0.0, **interval):
    config = load('toy').get_config()
    config.data.num_classes, config.train.drop_label = 2, 0.1
    config.model.update(width=8, depth=1)
    config.sample.update(num_steps=4, scale=scale, rescale=rescale)
    config.sample.interval = ml_collections.ConfigDict(interval or dict(name='always'))
    recipe = recipes.recipe(config)
    def run(key):
      params = jax.tree.map(lambda a: jax.random.normal(key, a.shape), recipe.init(key))
      return recipe.draw(params, jax.random.split(key, 2), jnp.array([0, 1]))[0]
    return np.asarray(jax.jit(run)(jax.random.key(3)))
  plain, guided, rescaled = drawn(1.0), drawn(4.0), drawn(4.0, 0.7)
  np.testing.assert_allclose(drawn(4.0, name='time', low=0.0, high=1.0), guided, rtol=1e-4)
  np.testing.assert_allclose(drawn(4.0, name='logsnr', low=-np.inf, high=np.inf), guided, rtol=1e-4)
  np.testing.assert_allclose(drawn(4.0, name='logsnr', low=50.0, high=60.0), plain, rtol=1e-4)
  early = drawn(4.0, name='noise_to_signal', low=2.0, high=1e9)
  for one, other in ((plain, guided), (early, guided), (early, plain), (rescaled, guided)):
    assert abs(one - other).max() > 1e-3


def test_labels_are_dropped_to_null_at_the_rate_asked_for_and_per_example():
  config = _changed('train.drop_label', 0.25)
  recipe = recipes.recipe(config)
  params = recipe.init(jax.random.key(0))
  # With a table that is zero but for the null row, the loss tells which labels were dropped.
  table = jnp.zeros((11, 64)).at[10].set(1.0)
  params['classes']['table']['embedding'] = table
  params['final']['kernel'] = jnp.ones_like(params['final']['kernel'])
  params['final_modulation']['kernel'] = jnp.full((64, 128), 0.1)
  n = 512
  keys = jax.random.split(jax.random.key(1), n)
  batch = {'x': jnp.zeros((n, 8, 8, 1)), 'label': jnp.zeros(n, jnp.int32),
           'index': jnp.arange(n, dtype=jnp.uint32)}
  dropped, _ = jax.jit(recipe.loss)(keys, params, batch)
  params['classes']['table']['embedding'] = jnp.zeros((11, 64))
  kept, _ = jax.jit(recipe.loss)(keys, params, batch)
  share = float(jnp.mean(dropped != kept))
  assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / n), f'{share:.3f} of the labels were dropped'


ZERO_SNR = {'name': 'discrete', 'angles': {'name': 'scaled_linear_zero_snr'}}


@pytest.mark.parametrize('solver,grid,process', [
    ({'name': 'ddim', 'churn': 0.5}, {'name': 'uniform'}, None),
    ({'name': 'ddim', 'eta': 0.5}, {'name': 'trailing'}, ZERO_SNR),
    ({'name': 'heun', 'along': {'name': 'displacement'}}, {'name': 'uniform'}, None),
    ({'name': 'edm', 'churn': 2.0}, {'name': 'karras', 'sigma_max': 20.0}, None),
    ({'name': 'sde', 'diffusion': {'name': 'linear', 'norm': 0.5}, 'last': {'name': 'tweedie'}},
     {'name': 'uniform'}, None),
    ({'name': 'dpmpp_3m', 'heun': True, 'taper': False},
     {'name': 'logsnr', 'start': -8.0, 'end': 8.0}, None),
    ({'name': 'unipc', 'order': 3}, {'name': 'linspace'}, ZERO_SNR),
    ({'name': 'adaptive', 'rtol': 1e-4, 'max_steps': 100}, {'name': 'uniform'}, None)])
def test_solvers_grids_and_tables_are_called_by_name(solver, grid, process):
  config = load('toy').get_config()
  config.sample.solver, config.sample.grid = map(ml_collections.ConfigDict, (solver, grid))
  config.sample.num_steps = 5
  if process:
    config.process, config.output = ml_collections.ConfigDict(process), {'name': 'v'}
  recipe = recipes.recipe(config)
  params = jax.eval_shape(recipe.init, jax.random.key(0))
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
  draws, *_ = jax.eval_shape(recipe.draw, params, keys, jax.ShapeDtypeStruct((2,), jnp.int32))
  assert draws.shape == (2, 2)


@pytest.mark.parametrize('path,value,message', [
    ('sample.solver', {'name': 'heun', 'along': {'name': 'z'}}, '.along.name=.z.: choose'),
    ('sample.solver', {'name': 'heun', 'along': {'name': 'eps'}}, "output 'eps' cannot give x"),
    ('sample.solver', {'name': 'dpmpp_2m', 'heun': 1.0}, 'solver.heun=1.0: give True or False'),
    ('sample.solver', {'name': 'ddim', 'churn': 2.0}, 'sample.solver: churn=2.0: give a number from 0'),
    ('sample.solver', {'name': 'sde', 'diffusion': {'name': 'sbdm'}},
     "sample.solver: diffusion 'sbdm' is not finite at t=1"),
    ('process', {'name': 'discrete', 'angles': {'name': 'cosine', 'num': 1}},
     'config.process.angles: .*two or more'),
    ('sample.solver', {'name': 'unipc', 'order': 2.0}, 'solver.order=2.0: give a whole number'),
    ('sample.solver', {'name': 'adaptive', 'last': -1.0}, 'config.sample.solver: last=-1.0'),
    ('sample.grid', {'name': 'uniform', 'start': 1.0, 'end': 0.5}, 'config.sample.grid: .*do not end'),
    ('sample.grid', {'name': 'logsnr', 'start': -8.0, 'end': 8.0, 'high': 0.5}, 'choose start and end'),
    ('sample.grid', {'name': 'karras', 'rho': 0.0}, 'config.sample.grid: .*rho is above 0'),
    ('sample.grid', {'name': 'leading', 'offset': -1}, 'config.sample.grid: .*an offset from 0'),
    ('loss.space', 'score', "config.loss: the space 'score' is not bounded"),
    ('loss.density', {'name': 'lognormal', 'mean': 0.0, 'std': 1.0}, 'config.loss: the density draws'),
    ('loss.weight', {'name': 'on_logsnr', 'w': {'name': 'elbo'}}, "set config.loss.space='eps'"),
    ('process', {'name': 'sub_vp', 'beta_min': -9.0, 'beta_max': 1.0}, 'config.process: '),
    ('process', {'name': 'discrete'}, r"also needs \['angles'\]")])
def test_solvers_and_tables_that_cannot_be_are_refused_by_key(path, value, message):
  with pytest.raises(ValueError, match=message):
    value = ml_collections.ConfigDict(value) if isinstance(value, dict) else value
    recipes.recipe(_changed(path, value, variant='flow'))
