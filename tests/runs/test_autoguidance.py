"""A run that is guided by a weaker one: its samples, and the guides that are rejected."""

import functools

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from eqflow import ema
from eqflow.commands import evaluate, ood, train
from eqflow.config import recipes
from eqflow.fields import Model
from eqflow.runs import generate, restore, second_run
from eqflow.runs.run import run_of
from tests import config_file
from tests.commands.test_train import TINY, points
from tests.rejected import rejected


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """name -> (config, folder) of a run, a shorter one of its kind, or one without classes."""
  tmp_path = tmp_path_factory.mktemp('guided')

  @functools.cache
  def run(name):
    classes, steps = {'self': (8, 12), 'worse': (8, 4), 'classless': (0, 6)}[name]
    config = points('eqm', num_classes=classes, num_examples=16 * steps)
    config.optimizer.update(dict(rate=2e-2, warmup_examples=0))
    train.train(run_of(config, tmp_path / name))
    return config, tmp_path / name

  return run


def guided(trained, name, **changes):
  """(the run's config with the run of that name as its guide, its folder)."""
  config, workdir = trained('self')
  config = config.copy_and_resolve_references()
  guide = dict(workdir=str(trained(name)[1]), params='params')
  config.sample.update(dict(scale=3.0, guide=guide) | changes)
  return config, workdir


def alone(trained, name, params):
  """(z, t, label) -> y of a run's own parameters, without guidance."""
  config, workdir = trained(name)
  config = config.copy_and_resolve_references()
  config.sample.params = params
  _, model = restore.restore(run_of(config, workdir))
  return model.network(model.params)


@pytest.mark.parametrize('name', [
    pytest.param('worse', marks=pytest.mark.long), 'classless'])
def test_a_run_is_guided_away_from_the_run_in_its_config(trained, name):
  config, workdir = guided(trained, name)
  recipe = recipes.recipe(config)
  _, models = restore.models(run_of(config, workdir))
  label, t = jnp.array([0, 1, 0]), jnp.array([0.2, 0.5, 0.9])
  z = jnp.asarray(np.random.default_rng(0).standard_normal((3, *config.data.shape)), jnp.float32)
  y = alone(trained, 'self', config.sample.params)(z, t, label)
  away = alone(trained, name, 'params')(z, t, None if name == 'classless' else label)
  found = jax.jit(lambda models: recipe.sampling.predictor(models, label)(z, t))(models)
  np.testing.assert_allclose(found, away + 3 * (y - away), rtol=1e-5, atol=1e-5)
  assert abs(found - y).max() > 1e-3, 'the guide changes nothing'


@pytest.mark.long
def test_evaluation_is_guided_and_previews_are_not(trained):
  config, workdir = guided(trained, 'worse')
  recipe = recipes.recipe(config)
  evaluate.evaluate(run_of(config, workdir))
  with np.load(workdir / 'samples.npz') as stored:
    x, labels = stored['samples'], stored['labels']

  def drawn(models):
    x, *_ = generate.samples(recipe.sampling, models, labels, seed=config.seed, batch=16)
    return x

  np.testing.assert_allclose(x, drawn(restore.models(run_of(config, workdir))[1]), atol=1e-5)
  # In training there is one model, and no guide.
  own, _ = trained('self')
  plain = recipes.recipe(own)
  models = restore.models(run_of(own, workdir))[1]
  unguided, *_ = generate.samples(plain.sampling, models, labels, seed=config.seed, batch=16)
  np.testing.assert_allclose(drawn(models), unguided, atol=1e-5)
  assert abs(x - drawn(models)).max() > 1e-3, 'guidance changes nothing'


@pytest.mark.long
def test_ood_scores_ignore_the_guide(trained, tmp_path):
  np.save(tmp_path / 'inputs.npy', np.zeros((4, 2), np.float32))
  (own, workdir), (config, _) = trained('self'), guided(trained, 'worse')
  assert ood.detect(run_of(config, workdir), inputs=tmp_path / 'inputs.npy') == ood.detect(
      run_of(own, workdir), inputs=tmp_path / 'inputs.npy')


def test_guidance_acts_only_in_its_interval_of_noise():
  config = config_file('digits').get_config('flow')
  config.model.update(dict(TINY, final_scale=0.5))
  config.sample.update(dict(scale=3.0, guide=dict(workdir='a', params='params'),
                            interval=dict(name='time', low=0.4, high=0.6)))
  recipe = recipes.recipe(config.lock())
  params, worse = (jax.jit(recipe.model.init)(jax.random.key(seed)) for seed in (0, 1))
  label, t = jnp.array([0, 1, 0]), jnp.array([0.2, 0.5, 0.9])
  z = jnp.ones((3, *config.data.shape))

  @jax.jit
  def change(params, worse):
    models = [Model(recipe.model.network, params), Model(recipe.model.network, worse)]
    return recipe.sampling.predictor(models, label)(z, t) - recipe.model.network(params)(z, t, label)

  changed = abs(change(params, worse)).reshape(3, -1).max(1)
  assert changed[1] > 1e-3 and max(changed[0], changed[2]) < 1e-6, changed


def nothing(config):
  pass


def other_process(config):
  config.process.name = 'cosine'


def other_classes(config):
  config.data.num_classes = 5


@pytest.mark.parametrize('guide, change, match', [
    (dict(workdir='/nowhere', params='params'), nothing, 'guide.workdir=.*/nowhere'),
    (dict(params=''), nothing, "guide.params=''"),
    (dict(params='0.5'), nothing, "config.sample.guide.params='0.5'"),
    ({}, other_process, 'guide.workdir=.*config.process=.*cosine'),
    ({}, other_classes, 'guide.workdir=.*8 classes.* 5'),
])
def test_a_bad_guide_is_rejected_before_training(trained, tmp_path, guide, change, match):
  config, _ = guided(trained, 'worse')
  with config.unlocked():
    config.sample.guide.update(guide)
    change(config)
  with pytest.raises(ValueError, match=match):
    train.train(run_of(config, tmp_path / 'new'))
  assert not (tmp_path / 'new').exists(), 'something was written'


def test_an_edm2_run_can_be_a_guide(tmp_path):
  config = config_file('digits').get_config('edm2')
  (tmp_path / 'config.json').write_text(config.to_json_best_effort())
  config.sample.update(dict(scale=2.0, guide=dict(workdir=str(tmp_path), params='0.05')))
  other = second_run.guide_of(run_of(config, tmp_path))
  assert other.workdir == tmp_path
  assert (other.config.sample.params, other.config.sample.scale) == ('0.05', 1.0)
  # Also one that is itself sampled with a scale for each channel.
  with config.ignore_type():
    config.sample.scale = (2.0,)
  (tmp_path / 'config.json').write_text(config.to_json_best_effort())
  assert second_run.guide_of(run_of(config, tmp_path)).config.sample.scale == 1.0


def test_guidance_away_from_the_null_class_needs_label_dropout():
  config = config_file('digits').get_config('edm2')
  config.sample.scale = 2.0
  with rejected('sample.scale', 2.0, 'drop_label'):
    recipes.recipe(config)


def test_a_guide_at_scale_1_is_rejected(trained):
  with rejected('sample.guide.workdir', 'scale=1'):
    recipes.recipe(guided(trained, 'worse', scale=1.0)[0])


@pytest.mark.parametrize('file, variant, scale', [
    ('imagenet512', 'xs_guided', 1.4), ('imagenet512', 's_guided', 1.4),
    ('imagenet512', 'm_guided', 1.2), ('imagenet512', 'l_guided', 1.2),
    ('imagenet512', 'xl_guided', 1.2), ('imagenet512', 'xxl_guided', 1.2),
    ('imagenet512', 'xs_guided_fdd', 1.7), ('imagenet512', 's_guided_fdd', 1.9),
    ('imagenet512', 'm_guided_fdd', 2.0), ('imagenet512', 's_autoguided', 2.10),
    ('imagenet512', 's_autoguided_fdd', 2.45), ('imagenet512', 'xxl_autoguided', 2.05),
    ('imagenet512', 'xxl_autoguided_fdd', 2.30), ('imagenet512', 'xxl_interval', 2.0),
    ('imagenet512', 'xxl_interval_fdd', 2.9), ('imagenet64', 's_autoguided', 1.70)])
def test_presets_have_the_papers_scales(file, variant, scale):
  config = config_file(file).get_config(variant)
  assert config.sample.scale == scale and config.sample.guide.workdir.startswith(f'runs/{file}-')
  assert config.model.name.endswith('-' + variant.split('_')[0])
  assert ema.is_std(config.sample.params) and ema.is_std(config.sample.guide.params)


@pytest.mark.parametrize('variant, first, last', [
    ('xxl_interval', 17, 22), ('xxl_interval_fdd', 13, 19)])
def test_the_interval_contains_exactly_the_papers_steps_of_32(variant, first, last):
  interval = config_file('imagenet512').get_config(variant).sample.interval
  sigma = (80 ** (1 / 7) + np.arange(32) / 31 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
  inside = np.flatnonzero((interval.low <= sigma) & (sigma <= interval.high))
  np.testing.assert_array_equal(inside, np.arange(first, last + 1))
