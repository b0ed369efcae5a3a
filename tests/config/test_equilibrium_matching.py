"""Equilibrium Matching by config: decays, conditioning on time, data exactly, dispersion."""

import jax
from jax import numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax
import pytest

from eqflow import densities, losses, outputs, processes
from eqflow.config import networks, recipes
from eqflow.fields import Model
from tests import config_file as load
from tests.rejected import rejected

ODE = dict(solver=dict(name='ddim'), num_steps=40, grid=dict(name='uniform', start=1.0, end=0.0))
LATE = ODE | dict(grid=dict(name='uniform', start=0.99, end=0.0))
POINTS = np.array([[1.0, 1.0], [-1.0, -1.0]], np.float32)


def _config(file='toy', **changes):
  config = load(file).get_config('eqm')
  for path, value in changes.items():
    *parents, key = path.split('__')
    section = config
    for parent in parents:
      section = section[parent]
    # A section is replaced as a whole, but config.sample is changed key by key.
    for name, given in (value.items() if key == 'sample' else [(key, value)]):
      target = section.sample if key == 'sample' else section
      with target.unlocked():
        target[name] = ConfigDict(given) if isinstance(given, dict) else given
  return config


def _batch(x, classes=0):
  b = len(x)
  return {'x': jnp.asarray(x), 'label': jnp.arange(b) % max(classes, 1),
          'index': jnp.arange(b, dtype=jnp.uint32)}


# [Wang & Du 2510.02300, eqs. 4 to 6], of gamma = 1 - t.
@pytest.mark.parametrize('section,written', [
    (dict(name='constant', gain=3.0), lambda g: 3 + 0 * g),
    (dict(name='linear', gain=2.0), lambda g: 2 * (1 - g)),
    (dict(name='truncated', start=0.6, gain=4.0), lambda g: 4 * np.where(g <= 0.6, 1, (1 - g) / 0.4)),
    (dict(name='piecewise', start=0.6, height=1.4, gain=2.0),
     lambda g: 2 * np.where(g <= 0.6, 1.4 - 0.4 / 0.6 * g, (1 - g) / 0.4))], ids=lambda v: str(v)[:20])
def test_every_decay_and_its_gain_is_a_row(section, written):
  # The network starts at zero, so the loss is c(gamma)^2 |eps - x|^2, and flow matching's |eps - x|^2.
  small = dict(model__width=8, model__depth=1)
  recipe = recipes.recipe(_config(output__decay=section, **small))
  flow = recipes.recipe(_config(output=dict(name='u'), sample=ODE, **small))
  batch, keys = _batch(POINTS.repeat(8, 0)), jax.random.split(jax.random.key(1), 16)
  params = jax.jit(recipe.model.init)(jax.random.key(0))
  (found, aux), (plain, _) = jax.jit(lambda params: [
      one.objective.loss(keys, params, batch) for one in (recipe, flow)])(params)
  np.testing.assert_allclose(found, written(1 - np.asarray(aux['t'])) ** 2 * plain, rtol=1e-4)


@pytest.mark.parametrize('decay,c_noise', [
    (dict(name='truncated', start=0.8, gain=4.0), 'none'), (dict(name='constant', gain=1.0), 'time'),
    *(pytest.param(*row, marks=pytest.mark.long) for row in [
        (dict(name='truncated', start=0.8, gain=4.0), 'time'),
        (dict(name='constant', gain=1.0), 'none')])], ids=str)
def test_each_combination_of_decay_and_time_conditioning_trains_and_samples(decay, c_noise):
  # Two points: noise goes to the one that it is nearer to.
  descends = c_noise == 'none' and decay['name'] == 'truncated'
  how = dict(solver=dict(name='gradient_descent', step_size=0.01), num_steps=80) if descends else ODE
  recipe = recipes.recipe(_config(output__decay=decay, model__c_noise=dict(name=c_noise),
                                model__width=64, model__depth=1, sample=how))
  adam, batch = optax.adam(5e-3), _batch(POINTS.repeat(64, 0))

  @jax.jit
  def trained_and_drawn():
    def step(carry, i):
      params, state = carry
      i = i.astype(jnp.uint32)
      keys = jax.vmap(lambda k: jax.random.fold_in(jax.random.fold_in(jax.random.key(2), i), k))(
          batch['index'])
      moved = batch | {'index': batch['index'] + 128 * i}
      mean = lambda p: recipe.objective.loss(keys, p, moved)[0].mean()
      value, grads = jax.value_and_grad(mean)(params)
      updates, state = adam.update(grads, state)
      return (optax.apply_updates(params, updates), state), value
    params = recipe.model.init(jax.random.key(0))
    (params, _), values = jax.lax.scan(step, (params, adam.init(params)), jnp.arange(600))
    keys = jax.random.split(jax.random.key(3), 200)
    return values, recipe.sampling.generate(
        [Model(recipe.model.network, params)], keys, jnp.zeros(200, jnp.int32))[0]

  values, x = trained_and_drawn()
  assert values[-20:].mean() < 0.75 * values[0]
  far = np.linalg.norm(np.asarray(x)[:, None] - POINTS, axis=-1).min(1)
  assert np.median(far) < 0.45, 'noise is 1.1 from the nearer point'
  signs = np.asarray(x).sum(1) > 0
  assert 0.3 < signs.mean() < 0.7


def test_a_fraction_of_the_batch_is_clean_data():
  small = dict(model__width=8, model__depth=1)
  batch, keys = _batch(POINTS.repeat(50, 0)), jax.random.split(jax.random.key(1), 100)
  recipe = recipes.recipe(_config(loss__at_data=0.2, **small))
  loss, aux = jax.jit(lambda key: recipe.objective.loss(keys, recipe.model.init(key), batch))(
      jax.random.key(0))
  at_data = np.asarray(aux['t'] == 0)
  assert abs(at_data.sum() - 20) <= 1
  # There the target is zero, and so is a network that starts at zero.
  assert (np.asarray(loss)[at_data] == 0).all() and (np.asarray(loss)[~at_data] > 0).all()


@pytest.mark.parametrize('changes,key,named', [
    (dict(loss__at_data=1.0), 'loss.at_data', '1.0'),
    (dict(loss__at_data=0.1, loss__space='x'), 'loss', 'equilibrium'),
    (dict(loss__at_data=0.1, output=dict(name='u'), sample=LATE,
          model__c_noise=dict(name='logsnr')), 'loss', 'logsnr'),
    (dict(loss__at_data=0.1, output=dict(name='eps'), sample=LATE, loss__space='eps',
        loss__weight=dict(name='on_logsnr', w=dict(name='sigmoid', bias=0.0)),
        loss__density=dict(name='adaptive', low=-5.0, high=5.0, bins=10, keep=0.9)),
     'loss.at_data', 'adaptive'),
    (dict(loss__dispersive=-0.5), 'loss.dispersive', '-0.5')])
def test_impossible_options_are_rejected_by_key(changes, key, named):
  with rejected(key, named):
    recipes.recipe(_config(**changes))


@pytest.mark.parametrize('key', ['at_data', 'dispersive'])
def test_a_config_without_these_keys_is_incomplete(key):
  config = _config()
  del config.loss[key]
  with rejected(f'loss.{key}'):
    recipes.recipe(config)


def test_the_dispersive_loss_takes_the_activations_of_the_last_block():
  config = _config('digits', model__width=8, model__depth=2, model__heads=2)
  plain, dispersed = (recipes.recipe(_config('digits', model__width=8, model__depth=2, model__heads=2,
                                           loss__dispersive=weight)) for weight in (0.0, 0.5))
  x = np.random.default_rng(0).normal(size=(6, 8, 8, 1)).astype(np.float32)
  batch, keys = _batch(x, 10), jax.random.split(jax.random.key(1), 6)
  module = networks.flax_module(config.model, 10)
  def captured(key):
    params = jax.tree.map(lambda a: a + 0.1, plain.model.init(key))
    (loss, aux), (more, _) = (one.objective.loss(keys, params, batch) for one in (plain, dispersed))
    # Which states the loss saw.
    seen = {}
    def spy(z, t):
      seen.update(z=z)
      return z
    losses.matching_loss(keys, spy, batch['x'], process=processes.linear, output=outputs.u,
                         density=densities.uniform,
                         u=densities.low_discrepancy(batch['index'], np.uint32(config.seed)))
    _, kept = module.apply({'params': params}, seen['z'], jnp.zeros(6), batch['label'],
                           capture_intermediates=lambda m, _: m.name == 'block_1')
    h = kept['intermediates']['block_1']['__call__'][0]
    return loss, more, losses.dispersive(h)
  loss, more, spread = jax.jit(captured)(jax.random.key(0))
  assert spread < -1e-3
  np.testing.assert_allclose(more - loss, 0.5 * spread * np.ones(6), rtol=2e-3, atol=1e-5)
