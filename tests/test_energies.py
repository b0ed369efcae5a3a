"""Energies: training and descent use their gradients."""

import functools

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from ml_collections import ConfigDict
import numpy as np
import optax
import pytest

from eqflow import densities, descent, energies, fields, guidance, losses, oracles, outputs, processes
from eqflow.config import networks, recipes
from eqflow.fields import Model
from eqflow.models import dit, embed, mlp
from tests import config_file as load
from tests import rows
from tests.rejected import rejected

KINDS = {'dot': energies.dot, 'squared_norm': energies.squared_norm,
         'negative_squared_norm': energies.negative_squared_norm}
RESTATED = {'dot': lambda z, f: np.sum(z * f), 'squared_norm': lambda z, f: np.sum(f**2) / 2,
            'negative_squared_norm': lambda z, f: -np.sum(f**2) / 2}


def _tree_network(z, t, condition):
  """A network on a tree that couples its leaves, the time and the condition."""
  mean = jnp.mean(z['a'], axis=(1, 2))
  return {'a': jnp.sin(2 * z['a']) + (t + z['b'])[:, None, None] * condition[:, None, None],
          'b': jnp.cos(z['b'] * mean) + t}


def _differences(function, x, h=1e-4):
  """d function/dx of a numpy array by central differences, one entry at a time."""
  slopes = np.zeros_like(x)
  for at in np.ndindex(x.shape):
    ahead, behind = x.copy(), x.copy()
    ahead[at] += h
    behind[at] -= h
    slopes[at] = (function(ahead) - function(behind)) / (2 * h)
  return slopes


@pytest.mark.parametrize('kind', KINDS)
def test_a_field_equals_finite_differences_of_its_energy(kind, x64):
  rng = np.random.default_rng(0)
  z = {'a': rng.normal(size=(2, 3, 2)), 'b': rng.normal(size=2)}
  t, condition = np.array([0.3, 0.9]), np.array([1.5, -0.5])
  energy = KINDS[kind](_tree_network)
  field = jax.jit(energies.energy_gradient(energy))(z, t, condition)
  network = jax.jit(_tree_network)
  def written(z):
    f = jax.tree.map(np.asarray, network(z, t, condition))
    return np.array([RESTATED[kind](z['a'][j], f['a'][j]) + RESTATED[kind](z['b'][j], f['b'][j])
                     for j in range(2)])
  np.testing.assert_allclose(jax.jit(energy)(z, t, condition), written(z), rtol=1e-12)
  for name in z:
    expected = _differences(lambda leaf, name=name: written(z | {name: leaf}).sum(), z[name])
    np.testing.assert_allclose(field[name], expected, atol=1e-6, rtol=1e-6)


# x ~ N(m, s^2 I) and the linear process: E[output | z] is linear in z with a multiple of I, so it is
# the gradient of a quadratic, and each kind of energy equals it for a network in closed form.
MEAN, STD, WHEN = np.array([0.7, -0.4]), 0.3, 0.6
FIELD = Partial(oracles.gaussian, process=processes.linear, mean=MEAN, cov=STD**2 * np.eye(2),
                output=rows.OUTPUTS['equilibrium_truncated'])


def _slope(t):
  # E[eps - x | z] = (sigma - alpha s^2)/(alpha^2 s^2 + sigma^2) (z - alpha m) - m, and c = 4 here.
  return 4 * (t - (1 - t) * STD**2) / ((1 - t) ** 2 * STD**2 + t**2)


def _of_gaussian(kind):
  """A network; its energy of this kind has the Gaussian's field as gradient."""
  field = lambda z, t: FIELD(z, t)
  def network(z, t, condition):
    slope = _slope(t)[:, None]
    if kind == 'dot':
      return (field(z, t) + field(jnp.zeros_like(z), t)) / 2
    if kind == 'squared_norm':
      return field(z, t) / jnp.sqrt(slope)
    # |f|^2 = K - |field|^2/slope, all of it in the first coordinate.
    length = jnp.sqrt(1e3 - jnp.sum(field(z, t) ** 2, axis=1) / slope[:, 0])
    return jnp.stack([length, jnp.zeros_like(length)], axis=1)
  return network


@pytest.mark.parametrize('kind', KINDS)
def test_descending_a_closed_form_energy_reaches_the_zero_of_its_field(kind, x64):
  network = energies.energy_gradient(KINDS[kind](_of_gaussian(kind)))
  z = np.random.default_rng(1).normal(size=(5, 2)) * 2
  np.testing.assert_allclose(*jax.jit(lambda z, t: (network(z, t, None), FIELD(z, t)))(
      z, np.full(5, WHEN)), rtol=1e-9)
  # The zero of that field: alpha m + m/k for the slope k of E[eps - x | z].
  zero = (1 - WHEN) * MEAN + MEAN * 4 / _slope(WHEN)
  there = descent.descend(descent.gradient_descent(0.02), lambda z, t: network(z, t + WHEN, None),
                          jnp.asarray(z), num_steps=300)
  np.testing.assert_allclose(there, np.broadcast_to(zero, (5, 2)), atol=1e-8)


@pytest.mark.parametrize('kind', [
    'dot', *(pytest.param(kind, marks=pytest.mark.long) for kind in KINDS if kind != 'dot')])
def test_only_the_right_sign_of_the_energy_reaches_the_minimum_loss(kind):
  n = 4096
  keys = jax.random.split(jax.random.key(0), n)
  x = jnp.asarray(MEAN, jnp.float32) + STD * jax.random.normal(jax.random.key(1), (n, 2))
  loss = lambda predict: losses.matching_loss(
      keys, predict, x, process=processes.linear, output=rows.OUTPUTS['equilibrium_truncated'],
      density=densities.uniform_on(0.3, 0.9))[0].mean()
  network = energies.energy_gradient(KINDS[kind](_of_gaussian(kind)))
  found, least, wrong = jax.jit(lambda: (
      loss(fields.bind(network, None)), loss(FIELD), loss(lambda z, t: -network(z, t, None))))()
  np.testing.assert_allclose(found, least, rtol=1e-4)
  assert wrong > 2 * found


def test_any_function_with_one_number_per_example_is_an_energy(x64):
  mixture = dict(means=np.array([[1.0, 0.0], [-1.0, 0.5]]), stds=np.array([0.3, 0.6]),
                 weights=np.array([0.4, 0.6]))
  def surprise(z, t, condition):
    # -log p(z) on the linear process, written out.
    alpha, variance = 1 - t[:, None], ((1 - t[:, None]) * mixture['stds']) ** 2 + t[:, None] ** 2
    square = jnp.sum((z[:, None] - alpha[..., None] * mixture['means']) ** 2, -1)
    return -jax.nn.logsumexp(jnp.log(mixture['weights'] / variance) - square / (2 * variance), axis=1)
  score = Partial(oracles.mixture, process=processes.linear, output=outputs.score, **mixture)
  gradient = energies.energy_gradient(surprise)
  found, expected = jax.jit(lambda z, t: (gradient(z, t, None), -score(z, t)))(
      np.random.default_rng(2).normal(size=(6, 2)), np.linspace(0.1, 0.9, 6))
  np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_an_energy_that_is_not_one_number_per_example_is_rejected():
  z, t = jnp.ones((3, 2)), jnp.ones(3)
  for energy in (lambda z, t, condition: jnp.sum(z), lambda z, t, condition: z):
    with pytest.raises(ValueError, match='has shape .* 3 examples'):
      energies.energy_gradient(energy)(z, t, None)
  with pytest.raises(ValueError, match=r'network returned \(3, 1\) for z \(3, 2\)'):
    energies.dot(lambda z, t, condition: z[:, :1])(z, t, None)


@pytest.mark.parametrize('kind,make,shape', [
    ('squared_norm', functools.partial(mlp.MLP, width=8, depth=1), (3, 2)),
    ('dot', functools.partial(dit.DiT, patch=2, width=8, depth=1, heads=2), (3, 4, 4, 1))])
def test_training_takes_the_gradient_of_the_gradient(kind, make, shape, x64):
  # Against differences: of the energy along a direction in z, of the loss along one in the parameters.
  module = make(final_scale=0.3, dtype=jnp.float64, param_dtype=jnp.float64)
  rng = np.random.default_rng(5)
  z, target, t = rng.normal(size=shape), rng.normal(size=shape), jnp.linspace(0.2, 0.8, 3)
  params = jax.device_get(jax.jit(module.init)(jax.random.key(1), z, t)['params'])
  # Gates initialized at zero would hide the blocks; fixed tables have no gradient.
  moved = lambda size: jax.tree.map(lambda a, free: size * free * rng.normal(size=a.shape), params,
                                    embed.trainable(params))
  params, along = jax.tree.map(np.add, params, moved(0.3)), moved(1.0)
  energy = lambda params: KINDS[kind](Partial(module.apply, {'params': params}))

  def loss(params, z):
    field = energies.energy_gradient(energy(params))(z, t, None)
    return jnp.sum((field - target) ** 2), (field, energy(params)(z, t, None).sum())

  # One program: (loss, (field, energy)) and the gradient of the loss.
  at = jax.jit(jax.value_and_grad(loss, has_aux=True))

  def difference(function, h=2e-3):
    once = lambda h: (function(h) - function(-h)) / (2 * h)
    # Of fourth order: of second, it would need an h at which the rounding is seen.
    return (4 * once(h) - once(2 * h)) / 3

  (_, (field, _)), slope = at(params, z)
  # The softmax of attention is in float32 for queries of any dtype.
  np.testing.assert_allclose(np.vdot(field, target), difference(
      lambda h: at(params, z + h * target)[0][1][1]), rtol=2e-3)
  found = sum(map(np.vdot, jax.tree.leaves(slope), jax.tree.leaves(along)))
  expected = difference(lambda h: at(jax.tree.map(lambda a, d: a + h * d, params, along), z)[0][0])
  assert abs(expected) > 1
  np.testing.assert_allclose(found, expected, rtol=2e-3)


def _trained(name, zero):
  """The gradients in the parameters that an energy of that kind has at the start."""
  module = mlp.MLP(width=8, depth=1, final_scale=0.0 if zero else 0.1)
  z, t = jax.random.normal(jax.random.key(0), (8, 2)), jnp.zeros(8)
  params = module.init(jax.random.key(1), z, t)
  def loss(params):
    network = energies.energy_gradient(KINDS[name](Partial(module.apply, params)))
    return jnp.sum((network(z, t, None) - 1) ** 2)
  return max(float(jnp.abs(a).max()) for a in jax.tree.leaves(jax.grad(loss)(params)))


@pytest.mark.long
@pytest.mark.parametrize('kind', ['squared_norm', 'negative_squared_norm'])
def test_a_network_initialized_at_zero_learns_with_dot_but_not_with_norms(kind):
  assert _trained(kind, zero=True) == 0
  assert _trained(kind, zero=False) > 1e-3
  assert _trained('dot', zero=True) > 1e-3


def _config(kind, **changes):
  config = load('toy').get_config('eqm')
  config.data.num_classes = 2
  config.model.update(width=8, depth=1, final_scale=0.5)
  config.energy = ConfigDict(dict(name=kind))
  config.sample.update(num_steps=5, solver=ConfigDict(dict(name='gradient_descent', step_size=0.1)))
  for path, value in changes.items():
    section, _, key = path.partition('__')
    config[section].update(ConfigDict({key: value}))
  return config


@pytest.mark.parametrize('kind', [
    'dot', *(pytest.param(kind, marks=pytest.mark.long) for kind in KINDS if kind != 'dot')])
def test_a_config_samples_by_the_gradient_of_its_energy(kind):
  config = _config(kind)
  recipe, plain = recipes.recipe(config), recipes.recipe(_config('none'))
  assert plain.model.energy is None
  params = jax.jit(recipe.model.init)(jax.random.key(0))
  keys, labels = jax.random.split(jax.random.key(1), 3), jnp.array([0, 1, 1])
  models = [Model(recipe.model.network, params)]
  found, evaluations, _ = recipe.sampling.generate(models, keys, labels)
  assert (np.asarray(evaluations) == 5).all()

  module, t = networks.flax_module(config.model, 2), jnp.zeros(3)
  f = lambda z: module.apply({'params': params}, z, t, labels)
  @jax.jit
  def written(z):
    # f, and f + J^T z, or J^T f, or its negative.
    y, jacobian = f(z), jax.jacobian(lambda z: f(z).sum(0))(z)
    back = lambda v: jnp.einsum('ibj,bi->bj', jacobian, v)
    return y, {'dot': y + back(z), 'squared_norm': back(y), 'negative_squared_norm': -back(y)}[kind]
  # The same noise, with the network as the field itself and steps too small to see.
  still = _config('none', sample__solver=dict(name='gradient_descent', step_size=1e-30))
  start = np.asarray(recipes.recipe(still).sampling.generate(models, keys, labels)[0])
  z, by_network = start, start
  for _ in range(5):
    z, by_network = z - 0.1 * np.asarray(written(z)[1]), by_network - 0.1 * np.asarray(
        written(by_network)[0])
  np.testing.assert_allclose(found, z, atol=1e-5)
  assert abs(found - by_network).max() > 0.05, 'f itself would give this'
  values = jax.jit(recipe.model.energy(params))(start, t, labels)
  np.testing.assert_allclose(values, [RESTATED[kind](a, np.asarray(b))
                                      for a, b in zip(start, written(start)[0])], rtol=1e-5)


def test_a_config_trains_the_gradient_and_the_loss_falls():
  recipe = recipes.recipe(_config('dot', model__width=32))
  x = np.random.default_rng(0).choice([-1.0, 1.0], (64, 2)).astype(np.float32)
  batch = {'x': jnp.asarray(x), 'label': jnp.zeros(64, jnp.int32), 'index': jnp.arange(64)}
  keys = jax.random.split(jax.random.key(0), 64)
  mean = lambda params: recipe.objective.loss(keys, params, batch)[0].mean()
  adam = optax.adam(1e-2)
  def step(carry, _):
    params, state = carry
    value, grads = jax.value_and_grad(mean)(params)
    updates, state = adam.update(grads, state)
    return (optax.apply_updates(params, updates), state), value
  params = jax.jit(recipe.model.init)(jax.random.key(1))
  energy = lambda z: recipe.model.energy(params)(z, jnp.zeros(64), batch['label']).sum()
  np.testing.assert_allclose(*jax.jit(lambda z: (
      recipe.model.network(params)(z, jnp.zeros(64), batch['label']), jax.grad(energy)(z)))(batch['x']),
      rtol=1e-5)
  values = jax.jit(lambda: jax.lax.scan(step, (params, adam.init(params)), length=200)[1])()
  assert values[-1] < 0.8 * values[0]


@pytest.mark.long
def test_guiding_the_gradients_is_the_gradient_of_the_guided_energy(x64):
  rng = np.random.default_rng(3)
  z, t = jnp.asarray(rng.normal(size=(4, 5, 4))), jnp.full(4, 0.4)
  weights = jnp.asarray(rng.normal(size=(3, 4)))
  energy = energies.dot(lambda z, t, label: jnp.tanh(z * weights[label][:, None]) + z**2)
  network, label, null = energies.energy_gradient(energy), jnp.array([0, 1, 1, 0]), jnp.full(4, 2)
  guided = guidance.guided(network, label, null, scale=2.5)(z, t)
  value = guidance.guided(energy, label, null, scale=2.5)
  toward, away = energy(z, t, label), energy(z, t, null)
  np.testing.assert_allclose(value(z, t), away + 2.5 * (toward - away), rtol=1e-12)
  np.testing.assert_allclose(guided, jax.grad(lambda z: value(z, t).sum())(z), rtol=1e-10)
  # The published checkpoints guide the first three channels of four.
  first = guidance.guided(network, label, null, scale=np.array([[[2.5, 2.5, 2.5, 1.0]]]))(z, t)
  np.testing.assert_allclose(first[..., :3], guided[..., :3], rtol=1e-10)
  np.testing.assert_allclose(first[..., 3], network(z, t, label)[..., 3], rtol=1e-10)


@pytest.mark.parametrize('changes,key,named', [
    (dict(kind='l2'), 'energy.name', 'negative_squared_norm'),
    (dict(kind='squared_norm', model__final_scale=0.0), 'energy.name', 'final_scale=0.0'),
    (dict(kind='negative_squared_norm', model__final_scale=0.0), 'energy.name', 'final_scale=0.0'),
    (dict(kind='dot', model__final_scale=-1.0), 'model.final_scale', '-1.0'),
    (dict(kind='dot', loss__dispersive=0.5), 'loss.dispersive', 'dot'),
    (dict(kind='dot', energy__scale=2.0), 'energy.scale', 'no numbers'),
    (dict(kind='dot', model__c_noise=dict(name='time')), 'sample.solver.name', 'time')])
def test_an_energy_that_cannot_be_trained_is_rejected_by_key(changes, key, named):
  with rejected(key, named):
    recipes.recipe(_config(**changes))


def test_a_config_without_an_energy_is_incomplete():
  config = _config('dot')
  del config.energy
  with rejected('energy'):
    recipes.recipe(config)


def test_dot_accepts_a_network_initialized_at_zero():
  assert recipes.recipe(_config('dot', model__final_scale=0.0)).model.energy
