"""A run guided by a worse self: what its samples are made of, and what is refused."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from eqflow import build, draws, evaluate, run, sample
from eqflow import train as training
from experiments import config_file
from tests.test_train import TINY, tiny


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """(config of the better run, its folder, {name: folder of a worse one})."""
  tmp_path = tmp_path_factory.mktemp('guided')
  found, folders = tiny(tmp_path), {}
  training.train(found, tmp_path / 'self')
  for name, classes, steps in (('worse', found.data.num_classes, 4), ('classless', 0, 6)):
    other = tiny(tmp_path)
    other.data.num_classes = classes
    other.train.num_examples = steps * other.train.batch
    folders[name] = tmp_path / name
    training.train(other, folders[name])
  return found, tmp_path / 'self', folders


def guided(trained, name, **changes):
  """The better run's config, its guide the run of that name."""
  config, _, folders = trained
  config = config.copy_and_resolve_references()
  config.sample.update(dict(scale=3.0, guide=dict(workdir=str(folders[name]), params='params')))
  config.sample.update(changes)
  return config


def alone(config, folder, params):
  """(z, t, label) -> y of a run's own parameters, nothing beside them."""
  config = config.copy_and_resolve_references()
  config.sample.update(dict(scale=1.0, guide=dict(workdir='', params=''), params=params))
  recipe = build.recipe(config)
  return recipe.network(run.restore(config, recipe, folder)[1])


@pytest.mark.parametrize('name', ['worse', 'classless'])
def test_a_run_is_guided_away_from_the_run_that_its_config_names(trained, name):
  config, (own, workdir, folders) = guided(trained, name), trained
  other = own.copy_and_resolve_references()
  if name == 'classless':
    other.data.num_classes = 0
  other.train.num_examples = {'worse': 4, 'classless': 6}[name] * other.train.batch
  recipe = build.recipe(config)
  _, params = run.restore(config, recipe, workdir)
  assert isinstance(params, draws.Guided)

  rng, label = np.random.default_rng(0), jnp.array([0, 1, 0])
  z = jnp.asarray(rng.standard_normal((3, *config.data.shape)), jnp.float32)
  t = jnp.array([0.2, 0.5, 0.9])
  y = alone(own, workdir, config.sample.params)(z, t, label)
  away = alone(other, folders[name], 'params')(z, t, None if name == 'classless' else label)
  found = jax.jit(lambda params: recipe.sampling.predictor(params, label)(z, t))(params)
  np.testing.assert_allclose(found, away + 3 * (y - away), rtol=1e-5, atol=1e-5)
  assert abs(found - y).max() > 1e-3, 'the guide changes nothing'


def test_samples_and_evaluation_are_guided_and_scores_and_training_are_not(trained, capsys):
  config, (own, workdir, _) = guided(trained, 'worse'), trained
  labels = np.arange(16) % 2
  def drawn(config):
    recipe = build.recipe(config)
    return sample.draw(recipe, run.restore(config, recipe, workdir)[1], labels, seed=0, batch=16)[0]
  assert abs(drawn(config) - drawn(own)).max() > 1e-3
  recipe = build.recipe(config)
  _, params = run.restore(config, recipe, workdir, alone=True)
  unguided = sample.draw(recipe, params, labels, seed=0, batch=16)[0]
  np.testing.assert_allclose(unguided, drawn(own), atol=1e-5)
  rows = evaluate.evaluate(config, workdir)
  assert np.isfinite(next(iter(rows.values()))['frechet_pixels'])


def test_an_interval_of_noise_leaves_all_other_times_alone(tmp_path):
  config = config_file('digits').get_config('flow')
  config.model.update(dict(TINY, final_scale=0.5))
  config.sample.update(dict(scale=3.0, guide=dict(workdir='a', params=''),
                            interval=dict(name='time', low=0.4, high=0.6)))
  recipe = build.recipe(config.lock())
  params, worse = (jax.jit(recipe.init)(jax.random.key(seed)) for seed in (0, 1))
  label, t = jnp.array([0, 1, 0]), jnp.array([0.2, 0.5, 0.9])
  z = jnp.ones((3, *config.data.shape))

  @jax.jit
  def change(params, worse):
    given = draws.Guided(params, recipe.network(worse))
    return recipe.sampling.predictor(given, label)(z, t) - recipe.network(params)(z, t, label)

  changed = abs(change(params, worse)).reshape(3, -1).max(1)
  assert changed[1] > 1e-3 and max(changed[0], changed[2]) < 1e-6, changed


@pytest.mark.parametrize('changes, match', [
    (dict(scale=1.0), 'guides nothing'),
    (dict(guide=dict(workdir='/nowhere', params='params')), 'guide.workdir=.*there is no run'),
    (dict(guide=dict(workdir='', params=''), scale=3.0), None),
])
def test_guides_that_are_none_are_refused(trained, changes, match):
  config, workdir = guided(trained, 'worse', **changes), trained[1]
  if match is None:
    recipe = build.recipe(config)
    assert not isinstance(run.restore(config, recipe, workdir)[1], draws.Guided)
    return
  with pytest.raises(ValueError, match=match):
    run.restore(config, build.recipe(config), workdir)


@pytest.mark.parametrize('changes, match', [
    (dict(process=dict(name='cosine')), 'vectors of one kind'),
    (dict(data=dict(num_classes=5)), 'has 10 classes.*with none'),
])
def test_a_guide_of_other_classes_or_vectors_is_refused(trained, changes, match):
  config = guided(trained, 'worse')
  recipe = build.recipe(config)
  with config.unlocked():
    for section, given in changes.items():
      config[section].update(given)
  with pytest.raises(ValueError, match=match):
    run._guided(config, recipe, {})


def test_presets_have_the_papers_numbers():
  for file, variant, scale in (('imagenet512', 's_autoguided', 2.10),
                               ('imagenet64', 's_autoguided', 1.70),
                               ('imagenet512', 'xxl_autoguided', 2.05),
                               ('imagenet512', 'xxl_interval', 2)):
    config = config_file(file).get_config(variant)
    assert config.sample.scale == scale and config.sample.guide.workdir
  # The six steps of 32 that the paper names, and no other.
  sigma = (80 ** (1 / 7) + np.arange(32) / 31 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
  interval = config.sample.interval
  inside = np.flatnonzero((interval.low <= sigma) & (sigma <= interval.high))
  np.testing.assert_array_equal(inside, np.arange(17, 23))
