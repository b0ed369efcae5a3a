"""Couplings match the theory of transport, and a run with one resumes and shards."""

import itertools

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import jaxtyping
import numpy as np
import pytest

from eqflow import arrays, couplings, densities, losses, outputs, processes
from eqflow.commands import train
from eqflow.config import recipes
from eqflow.data import pipeline, records
from eqflow.runs.run import run_of
from eqflow.training import sharding, train_state, train_step
from tests import config_file as load
from tests.commands.test_train import Interrupted, assert_bitwise_equal, interrupt

BOTH = {'optimal_transport': couplings.optimal_transport,
        'sinkhorn': Partial(couplings.sinkhorn, regularization=0.1)}


def keys_of(n, seed=0):
  return jax.random.split(jax.random.key(seed), n)


def normal(*shape, seed=1):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def cost(x, eps):
  """sum_i |x_i - eps_i|^2 over all leaves."""
  return sum(float(np.square(np.asarray(a, np.float64) - b).sum())
             for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(eps)))


def rows(eps):
  return sorted(map(tuple, np.asarray(eps).reshape(len(eps), -1).tolist()))


@pytest.mark.parametrize('seed', range(3))
def test_optimal_transport_is_the_cheapest_of_all_permutations(seed):
  x = {'a': normal(6, 2, 2, seed=seed), 'b': 3 * normal(6, seed=seed + 9)}
  keys = keys_of(6, seed)
  drawn = jax.tree.map(np.asarray, arrays.noise_like(keys, x))
  costs = {p: cost(x, jax.tree.map(lambda a: a[list(p)], drawn))
           for p in itertools.permutations(range(6))}
  best = min(costs, key=costs.get)
  found = couplings.optimal_transport(keys, x)
  for name in x:
    np.testing.assert_array_equal(found[name], drawn[name][list(best)])
  assert cost(x, found) < sorted(costs.values())[1], 'the second best is as good'


def test_in_one_dimension_the_order_of_the_noise_is_that_of_the_data():
  x = normal(300, 1)
  eps = couplings.optimal_transport(keys_of(300), x)
  assert eps.dtype == np.float32
  np.testing.assert_array_equal(np.argsort(x[:, 0]), np.argsort(eps[:, 0]))
  assert rows(eps) == rows(arrays.noise_like(keys_of(300), x)), 'a noise is lost or dealt out twice'


def test_noise_is_permuted_within_each_group():
  x, group = normal(12, 2), np.array([0, 1, 1, 2] * 3)
  drawn = np.asarray(arrays.noise_like(keys_of(12), x))
  eps = couplings.optimal_transport(keys_of(12), x, group=group)
  for label in range(3):
    own = group == label
    assert rows(eps[own]) == rows(drawn[own]), 'noise has left its group'
    best = min(cost(x[own], drawn[own][list(p)]) for p in itertools.permutations(range(own.sum())))
    np.testing.assert_allclose(cost(x[own], eps[own]), best, rtol=1e-6)
  assert cost(x, eps) > cost(x, couplings.optimal_transport(keys_of(12), x))


def test_two_points_swap_partners_with_the_probability_of_the_entropic_plan():
  # For costs c_ij of two and two, P_11 = P_22 = s/2 with s = sigmoid((c_12 + c_21 - c_11 - c_22)/2r).
  n, r = 1_000, 1.5
  x, group = normal(n, 2), np.arange(n) // 2
  drawn = np.asarray(arrays.noise_like(keys_of(n), x), np.float64).reshape(-1, 2, 2)
  pairs = x.reshape(-1, 1, 2, 2).swapaxes(1, 2)
  c = np.square(pairs - drawn[:, np.newaxis]).sum(-1)
  gain = (c[:, 0, 1] + c[:, 1, 0] - c[:, 0, 0] - c[:, 1, 1]) / (2 * r)
  stay = 1 / (1 + np.exp(-gain))
  eps = couplings.sinkhorn(keys_of(n), x, regularization=r, group=group, tolerance=1e-6)
  stayed = (eps.reshape(-1, 2, 2) == drawn.astype(np.float32)).all(-1)
  for i in (0, 1):
    # Weighed by the gain, so that another regularization shows.
    for weigh in (np.ones_like(gain), gain):
      off = weigh @ (stayed[:, i] - stay) / np.sqrt(weigh**2 @ (stay * (1 - stay)))
      assert abs(off) < 4.5, f'partner {i} stays too often or too seldom, by {off:.1f} errors'


def test_sinkhorn_goes_from_optimal_to_independent():
  n, keys, x = 64, keys_of(64), normal(64, 2) * np.float32([3, 1])
  drawn = np.asarray(arrays.noise_like(keys, x), np.float64)
  sharp = couplings.sinkhorn(keys[:16], x[:16], regularization=1e-4)
  np.testing.assert_array_equal(sharp, couplings.optimal_transport(keys[:16], x[:16]))
  # The mean over many draws of partners, at the ends and between them.
  mean = lambda r: np.mean([cost(x, couplings.sinkhorn(keys_of(n, s), x, regularization=r)) / n
                            for s in range(4)])
  costs = [mean(r) for r in (0.01, 1.0, 1e6)]
  assert (np.diff(costs) > 0).all(), f'the cost does not grow with regularization: {costs}'
  flat = couplings.sinkhorn(keys, x, regularization=1e9)
  np.testing.assert_array_equal(flat, couplings.sinkhorn(keys, x[::-1], regularization=1e9),
                                'partners still depend on the data')
  each = np.square(x[:, np.newaxis].astype(np.float64) - drawn).sum(-1)
  assert abs(cost(x, flat) / n - each.mean()) < 4.5 * np.sqrt(each.var(1).mean() / n)


@pytest.mark.parametrize('name', BOTH)
def test_a_coupling_is_a_function_of_keys_and_data(name):
  couple, x = BOTH[name], normal(20, 3)
  eps = couple(keys_of(20), x)
  np.testing.assert_array_equal(eps, couple(keys_of(20), x))
  assert not np.isin(eps, couple(keys_of(20, seed=1), x)).any(), 'other keys must give other noise'
  assert cost(x, eps) < 0.7 * cost(x, arrays.noise_like(keys_of(20), x))


def test_optimal_transport_makes_the_velocity_a_function_of_z():
  # x ~ N(0, s^2) in one dimension: E[u | z] is linear in z, and what is left of u is
  # s^2/(alpha^2 s^2 + sigma^2) for independent noise, nothing where eps is a function of x.
  n, s, t = 1_000, 0.5, 0.4
  x = s * normal(n, 1)
  left = {}
  for name, eps in (('independent', couplings.independent(keys_of(n), x)),
                    ('optimal', couplings.optimal_transport(keys_of(n), x))):
    z, u = ((1 - t) * x + t * eps).ravel(), (eps - x).ravel()
    left[name] = np.var(u - np.polyval(np.polyfit(z, u, 1), z))
  expected = s**2 / ((1 - t) ** 2 * s**2 + t**2)
  assert abs(left['independent'] / expected - 1) < 4.5 * np.sqrt(2 / n)
  assert left['optimal'] < 0.01 * expected, f'{left["optimal"]:.3g} of the velocity is left'


def test_a_path_over_a_grid_without_length_is_rejected():
  with pytest.raises(ValueError, match='0.5.*times that change'):
    couplings.straightness(np.ones((3, 4, 2)), [0.5, 0.5, 0.5])


def test_straightness_is_the_mean_square_deviation_from_the_chord():
  # For a half circle at constant speed |dz/dt - chord|^2 averages to pi^2 - 4, for a line to 0.
  grid = np.linspace(1, 0, 1_001) ** 2
  angle = np.pi * (1 - grid)[:, np.newaxis]
  circle = np.stack([np.cos(angle), np.sin(angle)], -1).astype(np.float32)
  line = np.stack([2 * grid[:, np.newaxis], -grid[:, np.newaxis]], -1).astype(np.float32)
  straightness = jax.jit(lambda path: couplings.straightness(path, grid))
  found = straightness(np.concatenate([circle, line], axis=1))
  np.testing.assert_allclose(found[0], (np.pi**2 - 4) / 2, rtol=1e-3)
  assert found[1] < 1e-4
  leaves = straightness({'a': circle[..., :1], 'b': circle[..., 1]})
  np.testing.assert_allclose(leaves, found[:1], rtol=1e-5)


def test_the_loss_uses_the_given_noise():
  x, eps = normal(8, 3), normal(8, 3, seed=2)
  @jax.jit
  def seen(keys):
    states = []
    losses.matching_loss(keys, lambda *given: states.append(given) or jnp.zeros_like(x), x,
                         process=processes.linear, output=outputs.u, density=densities.uniform,
                         coupling=Partial(couplings.given, eps=eps))
    return states

  (z, t), = seen(keys_of(8))
  t = np.asarray(t)[:, np.newaxis]
  np.testing.assert_allclose(z, (1 - t) * x + t * eps, atol=1e-6)


def _untyped(function, *given, **named):
  """The call as a user makes it: only tests check types first."""
  jaxtyping.config.update('jaxtyping_disable', True)
  try:
    return function(*given, **named)
  finally:
    jaxtyping.config.update('jaxtyping_disable', False)


X = normal(8, 2)
REJECTED = [
    (lambda: jax.jit(couplings.optimal_transport)(keys_of(8), X),
     'optimal_transport solves on the host'),
    (lambda: jax.jit(Partial(couplings.sinkhorn, regularization=1.0))(keys_of(8), X),
     'sinkhorn solves on the host'),
    (lambda: couplings.optimal_transport(keys_of(8), X * np.float32('nan')), 'NaN or infinite'),
    (lambda: couplings.optimal_transport(keys_of(8), np.ones((8, 2), int)), 'x is int.*not floating'),
    (lambda: couplings.sinkhorn(keys_of(8), X, regularization=0.0), 'regularization=0.0'),
    (lambda: couplings.sinkhorn(keys_of(8), X, regularization=1e-9, tolerance=0.0),
     'tolerance=0.0'),
    (lambda: couplings.optimal_transport(keys_of(8), X, group=np.zeros(3, int)),
     r'group has shape \(3,\) for 8 examples'),
    *[(lambda group=group, couple=couple: _untyped(couple, keys_of(8), X, group=group), message)
      for couple in BOTH.values() for group, message in (
          (np.array([0.0, 0.0, *6 * [np.nan]]), 'group has dtype float64: labels are integers'),
          (np.zeros(8), 'group has dtype float64'),
          (jnp.zeros(8, jnp.bfloat16), 'group has dtype bfloat16'),
          (np.arange(8) < 4, 'group has dtype bool'), (list('aabbaabb'), 'group has dtype <U1'),
          (np.array([None] * 8), 'group has dtype object'), (0, r'group has shape \(\)'),
          (np.zeros((8, 1), int), r'group has shape \(8, 1\)'))],
    (lambda: couplings.given(keys_of(8), X, eps=X[:, :1]), r'eps \(8, 1\) for x \(8, 2\)'),
]


@pytest.mark.parametrize('call,message', REJECTED, ids=lambda v: v[:24] if isinstance(v, str) else '')
def test_inputs_that_cannot_be_coupled_are_rejected(call, message):
  with pytest.raises((ValueError, TypeError), match=message):
    call()


def coupled(name='optimal_transport', file='toy', **changes):
  """A tiny config that couples."""
  config = load(file).get_config()
  config.model.update(dict(width=16, depth=1))
  config.loss.coupling = dict(name=name)
  config.train.update(dict(batch=32, num_examples=384, checkpoint_examples=128, log_examples=128,
                           sample_examples=10**6) | changes)
  config.optimizer.warmup_examples = 64
  config.sample.update(dict(num_steps=2, batch=8))
  return config.lock()


def batch_of(n, classes=0):
  label = np.arange(n, dtype=np.int32) % max(classes, 1)
  return {'x': normal(n, 2), 'label': label, 'index': np.arange(7, 7 + n, dtype=np.uint32)}


def test_a_run_permutes_the_noise_that_it_would_draw_without_a_coupling():
  batch, config = batch_of(32), coupled()
  eps = recipes.recipe(config).objective.couple(batch)
  # Without a coupling: fold_in(seed, index), then 1 for the noise, then the leaf.
  fold = lambda k: jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), k), 1)
  drawn = np.asarray(jax.vmap(lambda k: jax.random.normal(
      jax.random.fold_in(fold(k), 0), (2,)))(batch['index']))
  assert rows(eps) == rows(drawn)
  assert cost(batch['x'], eps) < 0.7 * cost(batch['x'], drawn)
  halves = recipes.recipe(coupled(accumulate=2)).objective.couple(batch)
  for half in (0, 1):
    assert rows(halves[half::2]) == rows(drawn[half::2]), 'a microbatch has the noise of another'


def test_a_conditional_model_permutes_noise_within_a_class():
  config = load('toy').get_config()
  config.loss.coupling = dict(name='optimal_transport')
  config.data.num_classes = 2
  batch = batch_of(32, classes=2)
  free = recipes.recipe(coupled()).objective.couple(batch)
  eps = recipes.recipe(config).objective.couple(batch)
  assert rows(eps[::2]) != rows(free[::2])
  fold = lambda k: jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), k), 1)
  drawn = np.asarray(arrays.noise_like(jax.vmap(fold)(batch['index']), batch['x']))
  for label in (0, 1):
    assert rows(eps[label::2]) == rows(drawn[label::2])


def test_several_processes_couple_the_whole_batch_as_one_does():
  source = records.Source(records.InMemory(normal(40, 2), np.zeros(40, np.int32)), (2,), 0, 'points')
  couple = recipes.recipe(coupled()).objective.couple
  def first(**options):
    batches = pipeline.batches(source, seed=0, batch=16, couple=couple, **options)
    found = [next(batches) for _ in range(3)]
    batches.close()
    return found
  whole = first()
  parts = [first(process_index=p, process_count=2) for p in (0, 1)]
  for i, batch in enumerate(whole):
    assert set(batch) == {'x', 'label', 'index', 'eps'}
    for key in batch:
      for p in (0, 1):
        np.testing.assert_array_equal(parts[p][i][key], batch[key][p::2], err_msg=key)


@pytest.mark.long
def test_devices_do_not_change_a_coupled_step():
  config = coupled(accumulate=2)
  recipe, states = recipes.recipe(config), []
  for devices in (1, 8):
    mesh = sharding.device_mesh(jax.devices()[:devices])
    state = train_state.create(recipe.model.init, recipe.optimizer, ['0.999'], 0, mesh)
    gradient = train_step.gradient_of(recipe.objective.loss, accumulate=2)
    step = train_step.make_step(gradient, recipe.optimizer, recipe.averages.rates, mesh)
    batch = batch_of(32)
    batch['eps'] = recipe.objective.couple(batch)
    states.append(step(state, sharding.place_batch(batch, mesh)))
  np.testing.assert_allclose(states[0][1], states[1][1], rtol=1e-5)


@pytest.mark.long
def test_a_coupled_run_resumes_bit_for_bit(
    tmp_path, monkeypatch):
  config = coupled()
  whole = train.train(run_of(config, tmp_path / 'whole'))
  with monkeypatch.context() as patch:
    interrupt(patch, 6)
    with pytest.raises(Interrupted):
      train.train(run_of(config, tmp_path / 'broken'))
  assert_bitwise_equal(whole, train.train(run_of(config, tmp_path / 'broken')))
