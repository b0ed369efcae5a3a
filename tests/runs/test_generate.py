"""Samples in batches and in refilled slots are the samples that each key gives alone."""

import functools
import time

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from ml_collections import ConfigDict
import numpy as np
import pytest

from eqflow import descent, energies
from eqflow.config import recipes
from eqflow.fields import Model
from eqflow.runs import composition, generate
from eqflow.training import sharding
from tests import config_file as load


def test_the_histogram_of_steps_counts_every_sample():
  config = ConfigDict(dict(sample=dict(threshold=3.5)))
  evaluations = np.random.default_rng(0).integers(80, 181, 1_000)
  lines = generate.steps_taken(config, evaluations).splitlines()
  found = [line.replace(' to ', ' ').split() for line in lines]
  assert sum(int(count.replace(',', '')) for _, _, _, count, *_ in found) == 1_000
  for low, high, _, count, *_ in found:
    within = (evaluations >= int(low)) & (evaluations <= int(high))
    assert int(count.replace(',', '')) == within.sum(), f'{low} to {high} evaluations'
  assert [int(low) for low, *_ in found[1:]] == [int(high) + 1 for _, high, *_ in found[:-1]]
  assert generate.steps_taken(config, np.full(9, 7)).split()[:4] == ['7', 'to', '7', 'evaluations']


def test_there_is_no_histogram_without_a_threshold():
  assert not generate.steps_taken(ConfigDict(dict(sample=dict(threshold=0.0))), np.full(9, 130))


@pytest.mark.parametrize('devices,batch', [(1, 8), (4, 4), (4, 40), *(
    pytest.param(*case, marks=pytest.mark.long) for case in [(1, 4), (1, 40), (4, 8)])])
def test_batches_are_yielded_in_order_and_each_example_keeps_its_key(devices, batch):
  mesh = sharding.device_mesh(jax.devices()[:devices])
  params = jax.device_put(jnp.ones(()), jax.NamedSharding(mesh, jax.P()))
  given = np.arange(30, dtype=np.int32)

  def function(params, keys, given):
    time.sleep(0.05 if given[0] == 3 else 0)   # The first batch is the last to end.
    return jax.vmap(jax.random.normal)(keys), given

  noise, rows = map(np.concatenate, zip(*generate.in_batches(
      function, params, given, seed=5, batch=batch, first=3)))
  np.testing.assert_array_equal(rows, given[3:])
  want = [jax.random.normal(jax.random.fold_in(jax.random.key(5), i)) for i in range(3, 30)]
  np.testing.assert_array_equal(noise, np.array(want))


COUNT, SLOTS, SEED, STEP, MOST, THRESHOLD = 40, 16, 3, 0.1, 60, 0.4
# Of three classes, and of none.
CENTRES = np.array([[0.0, 0.5], [4.0, 1.0], [-3.0, 6.0], [1.0, -1.0]])


def _toward(z, t, label):
  """z - centre[label]."""
  return z - jnp.asarray(CENTRES, z.dtype)[label]


def _half(z, t, label):
  """z/2 - centre[label]: the gradient of its product with z is z - centre[label]."""
  return z / 2 - jnp.asarray(CENTRES, z.dtype)[label]


def _sampled(network, scale=1.0):
  """(sampling, models) of a network that is descended until a threshold."""
  config = load('toy').get_config('eqm')
  config.data.num_classes, config.train.drop_label = 3, 0.1
  with config.ignore_type():
    config.sample.update(dict(
        solver=dict(name='gradient_descent', step_size=STEP), num_steps=MOST, threshold=THRESHOLD,
        scale=scale))
  # A network with parameters bound, as one of none.
  return recipes.recipe(config).sampling, [Model(Partial(lambda params: network), {})]


LABELS = np.arange(COUNT, dtype=np.int32) % 3


def _guided(scale):
  null = CENTRES[3]
  centre = null + np.array(scale) * (CENTRES[LABELS] - null)
  return _sampled(Partial(_toward), scale), LABELS, 1.0, centre


def _composed():
  # Two classes of equal weights, and one class alone.
  terms = np.resize(np.array([[0, 2], [1, -1], [2, 1]], np.int32), (COUNT, 2))
  sampling, models = _sampled(Partial(_toward))
  centre = np.where(terms[:, 1:] < 0, CENTRES[terms[:, 0]], CENTRES[terms].mean(1))
  return (composition.added([(sampling, 1)]), models), terms, 1.0, centre


def _weighted():
  # Weights that sum to 2: steps are twice as long.
  terms = np.resize(np.array([[0, 2], [1, 0], [2, 1]], np.int32), (COUNT, 2))
  sampling, models = _sampled(Partial(_toward))
  weights = np.float32([0.5, 1.5])
  centre = np.einsum('k,nkd->nd', weights, CENTRES[terms]) / 2
  return (composition.added([(sampling, 1)], weights), models), terms, 2.0, centre


def _energy():
  network = energies.energy_gradient(energies.dot(Partial(_half)))
  return _sampled(network), LABELS, 1.0, CENTRES[LABELS]


@pytest.mark.parametrize('case', [
    pytest.param(functools.partial(_guided, 2.5), id='guided', marks=pytest.mark.long),
    pytest.param(functools.partial(_guided, (2.5, 1.0)), id='guided by channel'),
    pytest.param(_composed, id='composed', marks=pytest.mark.long),
    pytest.param(_weighted, id='weighted'), pytest.param(_energy, id='energy')])
def test_a_sample_from_a_refilled_slot_equals_the_sample_alone(case):
  (sampling, models), labels, slope, centre = case()
  found = generate.samples(sampling, models, labels, seed=SEED, batch=SLOTS)
  # The noise of sample i, as its docstrings say: folded from (seed, i), then 0, then 0 for the leaf.
  example = lambda i: jax.random.fold_in(jax.random.key(SEED), i)
  key = lambda i: jax.random.fold_in(jax.random.fold_in(example(i), 0), 0)
  z = np.array([jax.random.normal(key(i), (2,)) for i in range(COUNT)])
  slope = np.broadcast_to(slope, COUNT)

  # Of f = a (z - centre): step k starts from centre + (1 - STEP a)^k (z - centre).
  k = np.arange(MOST)[:, np.newaxis]
  norms = slope * (1 - STEP * slope) ** k * np.linalg.norm(z - centre, axis=1)
  steps = (norms < THRESHOLD).argmax(0)
  shrunk = (1 - STEP * slope) ** steps
  want = (centre + shrunk[:, np.newaxis] * (z - centre), steps + 1, norms[steps, np.arange(COUNT)])
  assert (norms[-1] < THRESHOLD).all() and len(set(steps)) > 6, 'the samples should differ in steps'
  for name, a, b in zip(('samples', 'evaluations', 'norms'), found, want):
    np.testing.assert_allclose(a, b, atol=1e-4, err_msg=name)

  for i in range(0, COUNT, 7):
    pull = Partial(_pull, slope=np.float32(slope[i]), centre=np.float32(centre[i]))
    alone = descent.descend_until(descent.gradient_descent(STEP), pull, np.float32(z[i:i + 1]),
                                  max_steps=MOST, threshold=THRESHOLD)
    for name, a, b in zip(('sample', 'steps', 'norm'), found, alone):
      np.testing.assert_allclose(a[i], b[0], atol=1e-4, err_msg=f'{name} {i}')


def _pull(z, t, *, slope, centre):
  return slope * (z - centre)
