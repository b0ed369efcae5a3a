"""Every config becomes a recipe; an invalid value is rejected by its key."""

import jax
from jax import numpy as jnp
import ml_collections
import numpy as np
import pytest

from eqflow import outputs, processes
from eqflow.config import networks, recipes, sampling, schema, tables
from eqflow.fields import Model
from eqflow.training import nonfinite, sharding, train_state, train_step
from tests import ROOT
from tests import config_file as load
from tests import rows
from tests.rejected import rejected

# Each file's first variant, and those that add a part of the step; the others, ImageNet's networks,
# which take seconds each to trace, and Fashion-MNIST's, which is the digits', are long.
SHORT = 'digits-edm2', 'toy-adaptive'
ALL = [pytest.param(path.stem, variant, marks=[pytest.mark.long] * (
           path.stem.startswith(('imagenet', 'fashion'))
           or i > 0 and f'{path.stem}-{variant}' not in SHORT))
       for path in sorted((ROOT / 'configs').glob('*.py'))
       for i, variant in enumerate(load(path.stem).VARIANTS)]


@pytest.mark.parametrize('name,variant', ALL)
def test_every_config_and_variant_builds_and_traces_a_step(name, variant):
  config = load(name).get_config(variant).lock()
  recipe = recipes.recipe(config)
  mesh = sharding.device_mesh(jax.devices()[:1])
  step = train_step.make_step(train_step.gradient_of(recipe.objective.loss), recipe.optimizer,
                              recipe.averages.rates, mesh,
                              measure=recipe.objective.measure, prepare=recipe.model.prepare)
  def run(key, batch):
    params = recipe.model.init(key)
    state = train_state.TrainState(
        seed=jnp.uint32(0), step=jnp.int32(0), examples=jnp.uint32(0), params=params,
        opt_state=recipe.optimizer.init(params), emas={k: params for k in recipe.averages.names},
        histogram=recipe.objective.histogram, guard=nonfinite.start(), sums=train_state.no_sums())
    state, health = step(state, batch)
    models = [Model(recipe.model.network, params)]
    draws, *_ = recipe.sampling.generate(models, jax.random.split(key, 2), batch['label'][:2])
    return state, health, draws
  b, shape = config.train.batch, tuple(config.data.shape)
  batch = {'x': jax.ShapeDtypeStruct((b, *shape), jnp.float32),
           'label': jax.ShapeDtypeStruct((b,), jnp.int32),
           'index': jax.ShapeDtypeStruct((b,), jnp.uint32)}
  if config.loss.coupling.name != 'independent':
    batch['eps'] = batch['x']
  state, health, draws = jax.eval_shape(run, jax.random.key(0), batch)
  assert all(number.shape == () for number in health) and draws.shape == (2, *shape)
  assert state.examples.dtype == jnp.uint32


def test_every_row_of_the_tables_is_in_the_laws():
  assert set(tables.PROCESSES) <= set(rows.PROCESSES)
  assert set(tables.OUTPUTS) <= {name.split('_')[0] for name in rows.OUTPUTS}
  assert set(tables.DECAYS) <= set(rows.DECAYS)


def _changed(path, value, name='digits', variant=None):
  config = load(name).get_config(*([variant] if variant else []))
  *parents, key = path.split('.')
  section = config
  for parent in parents:
    section = section[parent]
  # One number for each channel replaces one for all.
  with section.unlocked(), section.ignore_type():
    section[key] = value
  return config


# (key that is changed, value, key of the error, what the message names).
REJECTED = [
    ('process.name', 'linaer', 'process.name', 'linaer', 'cosine'),
    ('process.beta_min', 0.1, 'process.beta_min', 'no numbers'),
    ('output.name', 'V', 'output.name', 'equilibrium'),
    ('output.gain', 4.0, 'output.gain', 'decay'),
    ('output.decay.name', 'cut', 'output.decay.name', 'truncated'),
    ('output.decay', dict(name='truncated'), 'output.decay', 'start'),
    ('loss.density.name', 'beta', 'loss.density.name', 'uniform'),
    ('loss.weight.name', 'snr', 'loss.weight.name', 'ones'),
    ('loss.coupling.name', 'optimal', 'loss.coupling.name', 'optimal_transport'),
    ('loss.coupling', dict(name='sinkhorn'), 'loss.coupling', 'regularization'),
    ('loss.coupling.name', 'pairs', 'loss.coupling.name', 'digits', 'pairs'),
    ('loss.coupling.group', 1, 'loss.coupling.group', 'no numbers'),
    ('loss.density', dict(name='mode', scale=3.0), 'loss.density', 3.0, -1),
    ('loss.density', dict(name='adaptive', low=-10.0, high=10.0, bins=100, keep=0.999),
     'loss.weight.name', 'adaptive', 'on_logsnr'),
    ('loss.density', dict(name='adaptive', low=10.0, high=-10.0), 'loss.density', 10.0, -10.0),
    ('loss.density', dict(name='adaptive', low=-10.0, high=10.0, half_life=9.0),
     'loss.density.half_life', 'bins', 'keep'),
    ('loss.weight', dict(name='on_logsnr', w=dict(name='sd4')), 'loss.weight.w.name', 'sd3'),
    ('loss.space', 'edm', 'loss.space', 'displacement'),
    ('model.name', 'unet', 'model.name', 'DiT-B/2', 'mlp'),
    ('model.widht', 3, 'model.widht', 'width'),
    ('model.dtype', 'half', 'model.dtype', 'float16'),
    ('model.c_noise.name', 'tiem', 'model.c_noise.name', 'time'),
    ('model.c_noise.name', 'time', 'sample.solver.name', 'time', 'none'),
    ('sample.solver.name', 'dimm', 'sample.solver.name', 'ddim'),
    ('sample.solver.momentum', 0.3, 'sample.solver.momentum', 'gradient_descent', 'step_size'),
    ('sample.num_steps', 0, 'sample.num_steps', 1, 1_000_000),
    ('sample.params', '0.99', 'sample.params', '0.999'),
    ('ema.decays', (1.5,), 'ema.decays', 1.5),
    ('ema.decays', ('a',), 'ema.decays', 'a'),
    ('ema.decays', (0.999, 0.999), 'ema.decays', '(0.999, 0.999)'),
    ('optimizer.rate', float('nan'), 'optimizer.rate', 'nan'),
    ('optimizer.b1', 1.5, 'optimizer.b1', 1.5, 0),
    ('seed', -1, 'seed', 0, 4294967295),
    ('seed', 5_000_000_000, 'seed', 4294967295),
    ('train.num_examples', 2**32, 'train.num_examples', 2**32),
    ('model.width', -16, 'model.width', 1),
    ('model.heads', 3, 'model.heads', 64, 3, 'use 2'),
    ('model.patch', 3, 'model', 8),
    ('data.workers', -1, 'data.workers', 0, 1024),
    ('data.shape', ('8', '8', '1'), 'data.shape', "'8'"),
    ('sample.threshold', -1.0, 'sample.threshold', 0),
    ('sample.batch', 0, 'sample.batch', 1),
    ('evaluate.num_samples', 2, 'evaluate.num_samples', 4),
    ('process', dict(name='shifted', process='linear', shift=2.0), 'process.process', 'name'),
    ('process', dict(name='shifted', process=dict(name='linear'), shift='a'), 'process.shift', 'a'),
    ('loss.weight', dict(name='on_logsnr', w=dict(name='sigmoid', bias='a')),
     'loss.weight.w.bias', 'a'),
    ('output', dict(name='score'), 'sample.solver.name', 'score', 'equilibrium'),
    ('optimizer.rate', -1.0, 'optimizer.rate', 0),
    ('optimizer.schedule.name', 'linear', 'optimizer.schedule.name', 'cosine'),
    ('sample.scale', float('inf'), 'sample.scale', 'inf'),
    ('sample.scale', 'strong', 'sample.scale', 'strong'),
    ('sample.scale', (float('nan'),), 'sample.scale[0]', 'nan'),
    ('sample.scale', (2.0, 1.0), 'sample.scale', 2, (8, 8, 1)),
    ('sample.scale', (), 'sample.scale', (8, 8, 1)),
    ('sample.rescale', 1.5, 'sample.rescale', 0, 1),
    ('sample.interval', dict(name='sigma'), 'sample.interval.name', 'logsnr'),
    ('sample.interval', dict(name='time', low=0.1), 'sample.interval', 'high'),
    ('sample.interval', dict(name='time', low=0.5, high=0.1), 'sample.interval', 0.5, 0.1),
    ('sample.interval', dict(name='time', low=0.1, high=float('nan')), 'sample.interval.high', 'nan'),
    ('sample.interval', dict(name='time', low=0.1, high=0.5), 'sample.interval.name', 'always'),
    ('train.drop_label', 2.0, 'train.drop_label', 0, 1),
]


@pytest.mark.parametrize('path,value,key,named', [(*row[:3], row[3:]) for row in REJECTED],
                         ids=lambda v: str(v)[:24])
def test_a_bad_value_is_rejected_by_its_key_with_what_is_allowed(path, value, key, named):
  with rejected(key, *named):
    recipes.recipe(_changed(path, value))


def test_the_published_sizes_are_rows():
  section = ml_collections.ConfigDict(dict(name='DiT-XL/2', doubled=True))
  module = networks.flax_module(section, 1000)
  shapes = jax.eval_shape(lambda key: module.init(key, jnp.zeros((1, 32, 32, 4)), jnp.zeros(1)),
                          jax.random.key(0))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 675_129_632


def test_a_grid_at_a_blind_spot_of_the_output_is_rejected():
  grid = dict(name='uniform', start=1.0, end=0.0)
  with rejected('sample.grid', 'eps', 't=1'):
    recipes.recipe(_changed('sample.grid', grid, variant='eps'))
  with rejected('sample.grid', 'logsnr', 't=1'):
    recipes.recipe(_changed('model.c_noise.name', 'logsnr', variant='flow'))


@pytest.mark.long
@pytest.mark.parametrize('variant', ['eqm', 'flow'])
def test_a_bfloat16_network_trains_and_samples_in_float32(variant):
  config = _changed('model.dtype', 'bfloat16', variant=variant)
  recipe = recipes.recipe(config)
  params = recipe.model.init(jax.random.key(0))
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  keys = jax.random.split(jax.random.key(0), 4)
  batch = {'x': jnp.zeros((4, 8, 8, 1)), 'label': jnp.zeros(4, jnp.int32),
           'index': jnp.arange(4, dtype=jnp.uint32)}
  losses, _ = jax.eval_shape(recipe.objective.loss, keys, params, batch)
  models = [Model(recipe.model.network, params)]
  z, *_ = jax.eval_shape(recipe.sampling.generate, models, keys, batch['label'])
  assert losses.dtype == z.dtype == jnp.float32


def test_an_adaptive_density_does_not_change_the_objective():
  recipe, n = recipes.recipe(load('toy').get_config('adaptive').lock()), 8192
  params, keys = jax.jit(recipe.model.init)(jax.random.key(0)), jax.random.split(jax.random.key(1), n)
  batch = {'x': jax.random.normal(jax.random.key(2), (n, 2)), 'label': jnp.zeros(n, jnp.int32),
           'index': jnp.arange(n, dtype=jnp.uint32)}
  # As if the loss were far greater in the middle: more draws there, of less weight.
  bump = np.exp(-0.002 * (np.arange(100) - 50.0) ** 2) + 0.05
  loss = jax.jit(recipe.objective.loss)
  even, aux = loss(keys, params, batch, recipe.objective.histogram)
  peaked, moved = loss(keys, params, batch, 900 * jnp.stack([bump, jnp.ones(100)]))
  assert moved['logsnr'].std() < 0.8 * aux['logsnr'].std(), 'the density did not follow'
  error = np.hypot(even.std(), peaked.std()) / np.sqrt(n)
  assert abs(even.mean() - peaked.mean()) < 4 * error < 0.2 * even.mean()


def test_only_images_are_mirrored():
  with rejected('data.flip', (2,)):
    recipes.recipe(_changed('data.flip', True, name='toy'))


def test_only_a_descent_has_a_threshold_and_only_classes_are_guided():
  with rejected('sample.threshold', 1.0, 'gradient_descent'):
    recipes.recipe(_changed('sample.threshold', 1.0, variant='flow'))
  with rejected('sample.scale', 2.0, 'num_classes=0'):
    recipes.recipe(_changed('sample.scale', 2.0, name='toy'))
  with rejected('sample.scale', (2, 1), 'num_classes=0'):
    recipes.recipe(_changed('sample.scale', [2, 1], name='toy'))
  recipes.recipe(_changed('sample.scale', (1, 1.0), name='toy'))


class Counting:
  """A closed-form network, (z, t, label) -> z - centre[label], that records its batch sizes."""
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
def test_each_channel_is_guided_by_its_own_scale(scale, counts):
  config = load('toy').get_config('eqm')
  config.data.num_classes, config.train.drop_label = 2, 0.1
  with config.ignore_type():
    config.sample.scale = scale
  schema.check(config)
  network = Counting()
  built = sampling.build(config, processes.linear, outputs.u)
  z, labels = np.array([[0.5, 0.25], [-1.0, 3.0]]), np.array([0, 1])
  predict = built.predictor([Model(network, {})], jnp.asarray(labels))
  found = predict(jnp.asarray(z, jnp.float32), jnp.zeros(2))
  # y_null + w (y - y_null), entry by entry, the null class the one after the last.
  y, null = z - network.CENTRES[labels], z - network.CENTRES[2]
  np.testing.assert_allclose(found, null + np.array(scale) * (y - null), rtol=1e-6)
  assert network.counts == counts, 'a null branch costs as much as another sample'


def test_guidance_acts_in_its_interval_and_is_rescaled():
  # Three times of the linear process, at noise-to-signal ratios of 1/4, 1 and 9.
  z, t = jnp.array([[0.5, 0.25], [-1.0, 3.0], [2.0, 1.0]]), jnp.array([0.2, 0.5, 0.9])
  labels = jnp.array([0, 1, 0])
  def guided(scale, rescale=0.0, **interval):
    config = load('toy').get_config()
    config.data.num_classes, config.train.drop_label = 2, 0.1
    config.sample.update(scale=scale, rescale=rescale)
    config.sample.interval = ml_collections.ConfigDict(interval or dict(name='always'))
    schema.check(config)
    built = sampling.build(config, processes.linear, outputs.u)
    return np.asarray(built.predictor([Model(Counting(), {})], labels)(z, t))
  plain, always, rescaled = guided(1.0), guided(4.0), guided(4.0, 0.7)
  assert abs(plain - always).max(1).min() > 1 and abs(rescaled - always).max(1).min() > 0.1
  np.testing.assert_array_equal(guided(4.0, name='time', low=0.0, high=1.0), always)
  np.testing.assert_array_equal(guided(4.0, name='logsnr', low=-np.inf, high=np.inf), always)
  np.testing.assert_array_equal(guided(4.0, name='logsnr', low=50.0, high=60.0), plain)
  np.testing.assert_array_equal(guided(4.0, name='noise_to_signal', low=2.0, high=1e9),
                                [plain[0], plain[1], always[2]])


def test_labels_are_dropped_per_example_at_the_given_rate():
  config = _changed('train.drop_label', 0.25)
  config.model.update(width=16, depth=1, heads=2)
  recipe = recipes.recipe(config)
  params = jax.jit(recipe.model.init)(jax.random.key(0))
  # In this table only the null row is not zero, so the loss shows which labels were dropped.
  table = np.zeros((11, 16), np.float32)
  table[10] = 1
  params['classes']['table']['embedding'] = table
  params['final']['kernel'] = np.ones((16, 4), np.float32)
  params['final_modulation']['kernel'] = np.full((16, 32), 0.1, np.float32)
  n = 512
  keys = jax.random.split(jax.random.key(1), n)
  batch = {'x': jnp.zeros((n, 8, 8, 1)), 'label': jnp.zeros(n, jnp.int32),
           'index': jnp.arange(n, dtype=jnp.uint32)}
  loss = jax.jit(recipe.objective.loss)
  dropped, _ = loss(keys, params, batch)
  params['classes']['table']['embedding'] = 0 * table
  kept, _ = loss(keys, params, batch)
  share = np.mean(np.asarray(dropped) != kept)
  assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / n), f'{share:.3f} of the labels were dropped'


ZERO_SNR = {'name': 'discrete', 'angles': {'name': 'scaled_linear_zero_snr'}}


@pytest.mark.parametrize('solver,grid,process', [
    ({'name': 'ddim', 'eta': 0.5}, {'name': 'trailing'}, ZERO_SNR),
    ({'name': 'heun', 'along': {'name': 'displacement'}}, {'name': 'uniform'}, None),
    ({'name': 'sde', 'diffusion': {'name': 'linear', 'norm': 0.5}, 'last': {'name': 'tweedie'}},
     {'name': 'uniform'}, None),
    ({'name': 'adaptive', 'rtol': 1e-4, 'max_steps': 100}, {'name': 'uniform'}, None),
    *(pytest.param(*row, None, marks=pytest.mark.long) for row in [
        ({'name': 'ddim', 'churn': 0.5}, {'name': 'uniform'}),
        ({'name': 'edm', 'churn': 2.0}, {'name': 'karras', 'sigma_max': 20.0}),
        ({'name': 'dpmpp_3m', 'heun': True, 'taper': False},
         {'name': 'logsnr', 'start': -8.0, 'end': 8.0})]),
    pytest.param({'name': 'unipc', 'order': 3}, {'name': 'linspace'}, ZERO_SNR,
                 marks=pytest.mark.long)])
def test_solvers_grids_and_tables_are_called_by_name(solver, grid, process):
  config = load('toy').get_config()
  config.sample.solver, config.sample.grid = map(ml_collections.ConfigDict, (solver, grid))
  config.sample.num_steps = 5
  if process:
    config.process, config.output = ml_collections.ConfigDict(process), {'name': 'v'}
  recipe = recipes.recipe(config)
  params = jax.eval_shape(recipe.model.init, jax.random.key(0))
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
  models = [Model(recipe.model.network, params)]
  draws, *_ = jax.eval_shape(recipe.sampling.generate, models, keys,
                             jax.ShapeDtypeStruct((2,), jnp.int32))
  assert draws.shape == (2, 2)


@pytest.mark.parametrize('path,value,key,named', [
    ('sample.solver', {'name': 'heun', 'along': {'name': 'z'}}, 'sample.solver.along.name', 'eps'),
    ('sample.solver', {'name': 'heun', 'along': {'name': 'eps'}}, 'sample.solver', 'eps'),
    ('sample.solver', {'name': 'dpmpp_2m', 'heun': 1.0}, 'sample.solver.heun', 'True or False'),
    ('sample.solver', {'name': 'ddim', 'churn': 2.0}, 'sample.solver.churn', '2.0'),
    ('sample.solver', {'name': 'sde', 'diffusion': {'name': 'sbdm'}}, 'sample.solver', 't=1'),
    ('process', {'name': 'discrete', 'angles': {'name': 'cosine', 'num': 1}},
     'process.angles.num', '2'),
    ('sample.solver', {'name': 'unipc', 'order': 2.0}, 'sample.solver.order', 'whole'),
    ('sample.solver', {'name': 'adaptive', 'last': -1.0}, 'sample.solver.last', '-1.0'),
    ('sample.grid', {'name': 'uniform', 'start': 1.0, 'end': 0.5}, 'sample.grid', '0.5'),
    ('sample.grid', {'name': 'logsnr', 'start': -8.0, 'end': 8.0, 'high': 0.5}, 'sample.grid', 'start'),
    ('sample.grid', {'name': 'karras', 'rho': 0.0}, 'sample.grid.rho', '0'),
    ('sample.grid', {'name': 'leading', 'offset': -1}, 'sample.grid.offset', '-1'),
    ('loss.space', 'score', 'loss', 'score'),
    ('loss.density', {'name': 'lognormal', 'mean': 0.0, 'std': 1.0}, 'loss', 'density'),
    ('loss.weight', {'name': 'on_logsnr', 'w': {'name': 'elbo'}}, 'loss.space', 'eps'),
    ('process', {'name': 'sub_vp', 'beta_min': -9.0, 'beta_max': 1.0}, 'process', ''),
    ('process', {'name': 'discrete'}, 'process', 'angles')])
def test_a_bad_solver_grid_or_table_is_rejected_by_its_key(path, value, key, named):
  value = ml_collections.ConfigDict(value) if isinstance(value, dict) else value
  with rejected(key, named):
    recipes.recipe(_changed(path, value, variant='flow'))
