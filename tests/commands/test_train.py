"""A run: its loss falls, it resumes bit for bit, it stops at a step that is not finite, and it logs."""

import functools
import json
import types

import jax
from jax import numpy as jnp
from ml_collections import ConfigDict
import numpy as np
from PIL import Image
import pytest

from eqflow import arrays
from eqflow.commands import train
from eqflow.config import recipes
from eqflow.fields import Model
from eqflow.runs import claim, dataset, generate, identity
from eqflow.runs.run import run_of
from eqflow.training import checkpoint, logging, sharding, train_state, train_step
from eqflow.training.runtime import ledger, preemption
from tests import config_file as load
from tests.faults import logs
from tests.rejected import rejected

TINY = dict(width=16, depth=1, heads=2)


def tiny(tmp_path, **train):
  """The digits' config at a size that compiles in seconds: 24 steps of 16."""
  config = load('digits').get_config()
  config.data.dir = str(tmp_path.parent / 'data')
  config.model.update(TINY)
  config.train.update(dict(batch=16, num_examples=384, log_examples=64, sample_examples=10**6,
                           checkpoint_examples=128, **train))
  config.optimizer.warmup_examples = 64
  config.sample.update(dict(num_steps=3, batch=16))
  config.evaluate.num_samples = 40
  return config.lock()


def adaptive():
  """The toy's config with a density that follows the loss: 24 steps of 64."""
  config = load('toy').get_config('adaptive')
  config.train.update(dict(batch=64, num_examples=1536, log_examples=512, sample_examples=10**6,
                           checkpoint_examples=512))
  return config.lock()


def leaves(state):
  return {jax.tree_util.keystr(path): np.asarray(leaf)
          for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def assert_bitwise_equal(a, b):
  a, b = leaves(a), leaves(b)
  assert a.keys() == b.keys()
  for name in a:
    assert a[name].tobytes() == b[name].tobytes(), f'{name} differs'


class Interrupted(Exception):
  pass


def interrupt(monkeypatch, at):
  """Raises Interrupted when the run asks for batch number `at`."""
  place, calls = sharding.place_batch, []
  def broken(*args):
    calls.append(1)
    if len(calls) > at:
      raise Interrupted
    return place(*args)
  monkeypatch.setattr(sharding, 'place_batch', broken)


def points(variant='flow', *, num_classes=0, **changes):
  """A config of points in the plane, which trains within a second: 12 steps, a save every 2."""
  config = load('toy').get_config(variant)
  config.data.update(dict(name='mixture', num_classes=num_classes))
  config.model.update(dict(width=8, depth=1))
  config.train.update(dict(batch=16, num_examples=192, log_examples=32, sample_examples=10**6,
                           checkpoint_examples=32) | changes)
  config.sample.update(dict(num_steps=2, batch=8))
  config.evaluate.num_samples = 8
  config.optimizer.schedule = ConfigDict(dict(name='constant'))
  return config


def test_an_interrupted_run_resumes_bit_for_bit(tmp_path, monkeypatch, capsys):
  # A log every 3 steps, a checkpoint every 8: a restart is between two lines.
  config = points(num_classes=8, drop_label=0.2, num_examples=384, log_examples=48,
                  checkpoint_examples=128)
  config.optimizer.update(dict(schedule=ConfigDict(dict(name='cosine')), warmup_examples=64))
  whole = train.train(run_of(config, tmp_path / 'whole'))
  with monkeypatch.context() as patch:
    interrupt(patch, 13)
    with pytest.raises(Interrupted):
      train.train(run_of(config, tmp_path / 'broken'))
  resumed = train.train(run_of(config, tmp_path / 'broken'))
  assert 'resuming from step 8' in capsys.readouterr().out
  assert int(whole.step) == 24 and int(whole.examples) == 384
  assert_bitwise_equal(whole, resumed)
  with checkpoint.open_checkpoints(tmp_path / 'broken', keep=2) as checkpoints:
    assert_bitwise_equal(checkpoints.restore(whole), whole)

  # The log has the same lines and numbers, each step once, and so has TensorBoard.
  rows, broken = (logs.rows(tmp_path / name) for name in ('whole', 'broken'))
  assert rows == broken and logs.board(tmp_path / 'whole') == logs.board(tmp_path / 'broken')
  assert [row['examples'] for row in rows] == [*range(48, 385, 48)]
  losses = [row['loss'] for row in rows]
  assert len(set(losses)) == len(losses) and np.isfinite(losses).all()
  # Of the last update, which saw examples 32 to 48 of 64 of the warm-up.
  rate = config.optimizer.rate * (48 / 64) * (1 + np.cos(np.pi * 32 / 384)) / 2
  np.testing.assert_allclose(rows[0]['learning_rate'], rate, rtol=1e-6)
  assert all(row['seconds'] > 0 for row in map(json.loads, (
      tmp_path / 'broken/metrics.jsonl').read_text().splitlines()))
  assert json.loads((tmp_path / 'whole/config.json').read_text())['train']['batch'] == 16
  assert list((tmp_path / 'whole/tensorboard').glob('events.*'))

  # A finished run does nothing more.
  assert_bitwise_equal(train.train(run_of(config, tmp_path / 'whole')), whole)

  # Without its checkpoints, as when a disk is not mounted, it does not start from scratch.
  before = (tmp_path / 'whole/metrics.jsonl').read_text()
  (tmp_path / 'whole/checkpoints').rename(tmp_path / 'elsewhere')
  with pytest.raises(ValueError, match='whole/checkpoints'):
    train.train(run_of(config, tmp_path / 'whole'))
  assert (tmp_path / 'whole/metrics.jsonl').read_text() == before


@pytest.mark.long
def test_a_run_that_is_trained_longer_ends_as_if_it_had_been_asked_to_at_once(tmp_path):
  whole = train.train(run_of(points(), tmp_path / 'whole'))
  first = train.train(run_of(points(num_examples=160, until_examples=112), tmp_path / 'longer'))
  assert int(first.step) == 7
  assert_bitwise_equal(train.train(run_of(points(), tmp_path / 'longer')), whole)
  with rejected('train.num_examples', 96, 192):
    train.last_step(points(num_examples=96), int(whole.step))


def test_a_preview_that_fails_is_reported_and_skipped(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(train, 'preview', lambda *given: 1 / 0)
  log = logging.Log(tmp_path, step=0, until=12, batch=16)
  with checkpoint.open_checkpoints(tmp_path, keep=1) as checkpoints:
    train.actions(run_of(points(), tmp_path), log, checkpoints, preemption.Stop(),
                  ledger.Ledger()).preview(types.SimpleNamespace(step=3))
  assert 'no samples at step 3: ZeroDivisionError' in ''.join(capsys.readouterr())


@pytest.mark.long
def test_the_histogram_of_an_adaptive_density_resumes_bit_for_bit(tmp_path, monkeypatch):
  whole = train.train(run_of(adaptive(), tmp_path / 'whole'))
  with monkeypatch.context() as patch:
    interrupt(patch, 13)
    with pytest.raises(Interrupted):
      train.train(run_of(adaptive(), tmp_path / 'broken'))
  assert_bitwise_equal(train.train(run_of(adaptive(), tmp_path / 'broken')), whole)
  loss, count = whole.histogram
  # 1,536 examples in 100 bins; the moving average has forgotten few.
  assert loss.shape == (100,) and 0.97 * 1536 < count.sum() < 1536 and (loss[count > 1] > 0).all()


@pytest.mark.long
def test_a_short_toy_training_learns(tmp_path, capsys):
  config = load('toy').get_config()
  config.train.update(dict(num_examples=76_800, sample_examples=38_400))
  state = train.train(run_of(config.lock(), tmp_path / 'moons'))
  loss = [json.loads(line)['loss'] for line in
          (tmp_path / 'moons/metrics.jsonl').read_text().splitlines()]
  assert loss[-1] < 0.9 * loss[0], f'the loss went from {loss[0]:.3f} to {loss[-1]:.3f}'
  assert (tmp_path / 'moons/samples-0000150.png').exists()
  recipe = recipes.recipe(config)
  x, *_ = generate.samples(recipe.sampling, [Model(recipe.model.network, state.emas['0.999'])],
                           np.zeros(500, np.int32), seed=1, batch=504)
  data = dataset.open_source(config).records.x[:2000]
  nearest = np.sqrt(((x[:, None] - data) ** 2).sum(-1).min(1)).mean()
  # Random points of the plane are 0.5 away, other records 0.02.
  assert nearest < 0.15, f'samples are {nearest:.3f} from their nearest record'


def test_a_folder_of_images_trains_with_no_preparation(tmp_path):
  rng = np.random.default_rng(0)
  for i in range(20):
    path = tmp_path / 'pictures' / 'ab'[i % 2] / f'{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (9 + i, 12, 3), np.uint8)).save(path)
  path.write_bytes(path.read_bytes()[:100])
  config = tiny(tmp_path)
  config.data.update(dict(name='folder', dir=str(tmp_path / 'pictures'), shape=(8, 8, 3),
                          num_classes=2))
  config.train.num_examples = 64
  state = train.train(run_of(config, tmp_path / 'run'))
  assert int(state.examples) == 64
  assert len(dataset.open_source(config)) == 19, 'the damaged image must be skipped'


@pytest.mark.parametrize('rate', [pytest.param(1e30, marks=pytest.mark.long), 1e39])
def test_a_step_that_is_not_finite_stops_the_run_and_is_not_saved(tmp_path, rate):
  config = tiny(tmp_path)
  config.optimizer.update(dict(rate=rate, warmup_examples=0))
  config.train.checkpoint_examples = 16
  with pytest.raises(FloatingPointError, match=r'step \d+: loss .*config.optimizer.rate'):
    train.train(run_of(config, tmp_path / 'run'))
  with checkpoint.open_checkpoints(tmp_path / 'run', keep=2) as checkpoints:
    assert checkpoints.steps() == [0], 'a state after the failure was written'


def test_the_folder_of_another_run_is_rejected_before_compiling(tmp_path, monkeypatch):
  config = tiny(tmp_path)
  with claim.claimed(config, tmp_path / 'run', dataset.open_source(config)):
    with pytest.raises(ValueError, match='/run'):
      train.train(run_of(config, tmp_path / 'run'))
  monkeypatch.setattr(train_state, 'create', lambda *a: pytest.fail('compiled before rejecting'))
  other = tiny(tmp_path)
  other.optimizer.rate = 0.5
  with pytest.raises(ValueError, match=r'config.optimizer.rate.*0\.003.*0\.5'):
    train.train(run_of(other, tmp_path / 'run'))
  for key, value in (('sample.num_steps', 99), ('train.keep_checkpoints', 5)):
    free = tiny(tmp_path)
    section, name = key.split('.')
    free[section][name] = value
    identity.check_config(free, tmp_path / 'run')


@pytest.mark.parametrize('change,message', [
    (dict(batch=12), r'config.train.batch=12\b.* 8\b'),
    (dict(accumulate=4), r'config.train.batch=16\b.*config.train.accumulate=4\b'),
    (dict(num_examples=0), 'config.train.num_examples=0'),
    (dict(log_examples=-1), 'config.train.log_examples=-1'),
])
def test_sizes_that_do_not_divide_are_rejected_before_compiling(
    tmp_path, monkeypatch, change, message):
  config = tiny(tmp_path)
  config.train.update(change)
  monkeypatch.setattr(train_state, 'create', lambda *a: pytest.fail('compiled before rejecting'))
  with pytest.raises(ValueError, match=message):
    train.train(run_of(config, tmp_path / 'run'))
  assert not (tmp_path / 'run').exists(), 'a rejected run must create nothing'


@pytest.mark.parametrize('key,value,message', [
    ('shape', (8, 8, 3), r'config.data.shape=\(8, 8, 3\).*\(8, 8, 1\)'),
    ('num_classes', 12, r'config.data.num_classes=12\b.*\b10\b'),
    ('name', 'digitz', 'digitz'),
    ('split', 'test', "'test'"),
])
def test_data_unlike_the_config_is_rejected(tmp_path, key, value, message):
  config = tiny(tmp_path)
  config.data[key] = value
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    train.train(run_of(config, tmp_path / 'run'))


def _updated(config, mesh, *, accumulate=1):
  recipe = recipes.recipe(config)
  state = train_state.create(recipe.model.init, recipe.optimizer, ['0.999'], 0, mesh,
                       histogram=recipe.objective.histogram)
  gradient = train_step.gradient_of(recipe.objective.loss, accumulate=accumulate)
  step = train_step.make_step(gradient, recipe.optimizer, recipe.averages.rates, mesh,
                              measure=recipe.objective.measure)
  rng = np.random.default_rng(0)
  for i in range(4):
    batch = {'x': rng.normal(size=(32, *config.data.shape)).astype(np.float32),
             'label': rng.integers(0, 10, 32).astype(np.int32),
             'index': np.arange(32 * i, 32 * i + 32, dtype=np.uint32)}
    state, health = step(state, sharding.place_batch(batch, mesh))
  return state, np.asarray(health)


@pytest.fixture(scope='module')
def one_device(tmp_path_factory):
  config = tiny(tmp_path_factory.mktemp('run'))
  return config, *_updated(config, sharding.device_mesh(jax.devices()[:1]))


@pytest.mark.parametrize('devices,accumulate', [
    pytest.param(8, 1, marks=pytest.mark.long), pytest.param(1, 4, marks=pytest.mark.long), (8, 2)])
def test_devices_and_accumulation_do_not_change_the_update(one_device, devices, accumulate):
  config, expected, health = one_device
  state, found = _updated(config, sharding.device_mesh(jax.devices()[:devices]),
                          accumulate=accumulate)
  np.testing.assert_allclose(found, health, rtol=1e-5)
  # Adam divides by the size of the gradient, which makes rounding errors of it larger.
  for name, leaf in leaves(state.params).items():
    np.testing.assert_allclose(leaf, leaves(expected.params)[name], atol=2e-5, err_msg=name)


@pytest.mark.long
def test_devices_and_accumulation_do_not_change_the_histogram():
  (one, _), (many, _) = (
      _updated(adaptive(), sharding.device_mesh(jax.devices()[:devices]), accumulate=accumulate)
      for devices, accumulate in ((1, 1), (8, 2)))
  # Four batches of 32; the moving average has forgotten little.
  assert 120 < one.histogram[1].sum() < 128
  np.testing.assert_array_equal(many.histogram[1], one.histogram[1])
  np.testing.assert_allclose(many.histogram[0], one.histogram[0], rtol=1e-3)


def test_fixed_tables_are_neither_trained_nor_given_optimizer_state(one_device):
  config, state, _ = one_device
  start = jax.jit(recipes.recipe(config).model.init)(jax.random.key(0))
  np.testing.assert_array_equal(state.params['fixed_positions'], start['fixed_positions'])
  held = [name for name in leaves(state.opt_state) if 'fixed' in name.split('[')[-1]]
  assert not held, f'the optimizer has {held}'
  moved = [name for name in leaves(state.opt_state) if 'final' in name]
  assert moved, 'the optimizer must have moments of trained parameters'


@pytest.mark.parametrize('kind', ['cosine', 'constant', 'inverse_square_root'])
def test_the_learning_rate_follows_the_examples_seen(tmp_path, kind):
  from eqflow.training import optimizers
  shape = {'cosine': lambda e: optimizers.cosine(e, num_examples=1000),
           'constant': optimizers.constant,
           'inverse_square_root': lambda e: optimizers.inverse_square_root(
               e, decay_examples=250.0)}[kind]
  expected = {'cosine': 0.5, 'constant': 1.0, 'inverse_square_root': np.sqrt(0.5)}[kind]
  for batch in (10, 20):
    rate = optimizers.learning_rate(rate=2.0, shape=shape, warmup_examples=100, batch=batch)
    np.testing.assert_allclose(rate(jnp.int32(500 // batch)), 2 * expected, rtol=1e-6)
    ramp = rate(jnp.int32(40 // batch)) / (2 * shape(40.0))
    np.testing.assert_allclose(ramp, (40 + batch) / 100, rtol=1e-6)


@pytest.mark.long
def test_a_converged_sample_does_not_depend_on_its_slot_or_device(tmp_path):
  config = tiny(tmp_path)
  with config.unlocked():
    config.sample.solver = dict(name='langevin', step_size=0.05, temperature=1e-3)
  config.sample.update(num_steps=12, threshold=1.0)
  keys = iter(jax.random.split(jax.random.key(1), 99))
  params = jax.tree.map(lambda p: p + 0.2 * jax.random.normal(next(keys), p.shape),
                        recipes.recipe(config).model.init(jax.random.key(0)))
  labels = generate.labels_of(3, 21, 10)

  def given(batch):
    recipe = recipes.recipe(config)
    return generate.samples(recipe.sampling, [Model(recipe.model.network, params)], labels, seed=3,
                            batch=batch)

  config.sample.threshold = float(np.median(given(24)[2]))
  batched, steps, norms = given(24)
  assert len(set(steps)) > 1, f'samples must differ in their number of steps: {steps}'
  # One slot on each of 8 devices, with a queue of two or three samples.
  queued, queued_steps, queued_norms = given(8)
  np.testing.assert_array_equal(queued_steps, steps)
  np.testing.assert_allclose(queued, batched, atol=1e-4)
  np.testing.assert_allclose(queued_norms, norms, rtol=1e-4)


def test_a_sample_depends_on_seed_and_index_alone(tmp_path):
  recipe = recipes.recipe(tiny(tmp_path))
  params = jax.tree.map(lambda p: p + np.float32(0.02),
                        jax.device_get(jax.jit(recipe.model.init)(jax.random.key(0))))
  labels = generate.labels_of(3, 20, 10)
  np.testing.assert_array_equal(labels[:7], generate.labels_of(3, 7, 10))
  draw = functools.partial(generate.samples, recipe.sampling, [Model(recipe.model.network, params)],
                           labels)
  few, *_ = draw(seed=3, batch=8)
  many, evaluations, _ = draw(seed=3, batch=24)
  assert few.shape == (20, 8, 8, 1) and evaluations.shape == (20,)
  np.testing.assert_allclose(few, many, atol=1e-4)
  other, *_ = draw(seed=4, batch=24)
  assert abs(other - many).max() > 0.1, 'another seed must give other samples'
  noise = np.asarray(jax.random.key_data(arrays.example_keys(3, np.arange(3))))
  assert len({n.tobytes() for n in noise}) == 3
  with pytest.raises(ValueError, match=r'batch=12\b.* 8\b'):
    draw(seed=3, batch=12)
