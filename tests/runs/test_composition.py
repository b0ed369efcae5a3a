"""Samples of several classes, or of several models: their fields are added."""

import json

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from eqflow import fields, guidance
from eqflow.config import recipes
from eqflow.runs import composition, generate, restore
from eqflow.runs.run import run_of
from tests.untrained import SHAPE, Untrained, recipe_of


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  return tmp_path_factory.mktemp('runs')


@pytest.fixture(scope='module')
def eqm(place):
  return Untrained(place, 'eqm', 1)


@pytest.fixture(scope='module')
def other(place):
  return Untrained(place, 'other', 2)


@pytest.fixture(scope='module')
def flow(place):
  return Untrained(place, 'flow', 3, 'flow')


@pytest.fixture(autouse=True)
def restored(eqm, other, flow, monkeypatch):
  """Each folder has its model instead of a checkpoint."""
  models = {run.workdir: run.model for run in (eqm, other, flow)}
  monkeypatch.setattr(recipes, 'recipe', recipe_of)
  monkeypatch.setattr(restore, 'restore', lambda run, **_: (7, models[run.workdir]))


def compose(model, labels, count=4, **more):
  return composition.composed(run_of(model.config, model.workdir), labels,
                              generate.labels_of(0, count, 10), **more)


def drawn(asked):
  return generate.samples(asked.sampling, asked.models, asked.labels, seed=0, batch=8)[0]


def test_joined_classes_descend_the_mean_of_their_fields(eqm):
  asked = compose(eqm, ['3+5', '1'], weights=None)
  z = np.stack([np.asarray(jax.random.normal(key, SHAPE)) for key in _noise_keys(4)])
  for _ in range(4):
    field = lambda *classes: np.asarray(eqm.predict(
        jnp.asarray(z), jnp.zeros(4), jnp.array(classes, jnp.int32)))
    z = z - 0.003 * (field(3, 1, 3, 1) + field(5, 1, 5, 1)) / 2
  np.testing.assert_allclose(drawn(asked), z, atol=1e-5)
  np.testing.assert_array_equal(asked.columns['labels'], [[3, 5], [1, -1]] * 2)
  np.testing.assert_allclose(asked.columns['weights'], [[0.5, 0.5], [1, 0]] * 2)


def _noise_keys(count):
  # Sample i's noise, as docs say: folded from (seed, i), then 0 for noise, then 0 for the leaf.
  for i in range(count):
    key = jax.random.fold_in(jax.random.key(0), i)
    yield jax.random.fold_in(jax.random.fold_in(key, 0), 0)


def test_a_class_is_its_name_or_its_number(eqm, other):
  names = ['circle', 'a+b', '1', 'wavy line', *'456789']
  (eqm.workdir / 'data.json').write_text(json.dumps({'classes': names}))
  (other.workdir / 'data.json').write_text(json.dumps({'classes': names[::-1]}))
  try:
    found = compose(eqm, ['circle', 'a+b', '0+wavy line', '1'], count=4)
    # The class that is called 1 is number 2; no class is called 0.
    np.testing.assert_array_equal(found.labels, [[0, -1], [1, -1], [0, 3], [2, -1]])
    assert found.names[:2] == ('circle', 'a+b')
    both = compose(eqm, ['circle+circle'], others=[str(other.workdir)])
    np.testing.assert_array_equal(both.labels, [[0, 9]] * 4)
    for wrong in ('square', '10', '-1', '', 'circle+'):
      with pytest.raises(ValueError, match='--labels=.* 0 to 9, or their names circle, a.b, 1, wavy'):
        compose(eqm, [wrong])
  finally:
    (eqm.workdir / 'data.json').unlink()
    (other.workdir / 'data.json').unlink()


def test_weights_scale_each_field(eqm):
  alone, doubled = drawn(compose(eqm, ['3'])), drawn(compose(eqm, ['3+5'], weights=['1', '0']))
  np.testing.assert_allclose(doubled, alone, atol=1e-5)
  twice = compose(eqm, ['3+3'], weights=['1', '1'])
  one = eqm.changed(solver=dict(name='gradient_descent', step_size=0.006))
  labels = np.full(4, 3)
  want = generate.samples(recipe_of(one).sampling, [eqm.model], labels, seed=0, batch=8)[0]
  np.testing.assert_allclose(drawn(twice), want, atol=1e-5)
  assert abs(want - alone).max() > 1e-3


def test_two_models_descend_the_sum_of_their_fields(eqm, other):
  found = drawn(compose(eqm, ['3+5', '1'], weights=['0.25', '1.5'], others=[str(other.workdir)]))
  predict = guidance.added([fields.bind(eqm.predict, jnp.array([3, 1, 3, 1])),
                          fields.bind(other.predict, jnp.array([5, 1, 5, 1]))], [0.25, 1.5])
  z = jnp.stack([jax.random.normal(key, SHAPE) for key in _noise_keys(4)])
  for _ in range(4):
    z = z - 0.003 * predict(z, jnp.zeros(4))
  np.testing.assert_allclose(found, z, atol=1e-5)


REJECTED = [
    (dict(labels=['3+12']), r'--labels=3\+12 .*0 to 9'),
    (dict(labels=['3+']), r'--labels=3\+ .*0 to 9'),
    (dict(labels=['3+5', '1'], weights=['1', '1']), '--weights=1,1 .*1 or 2 fields'),
    (dict(labels=['3+5'], weights=['1', 'nan']), '--weights=1,nan .*2 fields'),
    (dict(labels=['3+5'], weights=['1', 'x']), '--weights=1,x .*2 fields'),
    (dict(labels=['3'], others=['/nowhere']), '--others=/nowhere: /nowhere contains no run'),
]


@pytest.mark.parametrize('given,message', REJECTED, ids=[message for _, message in REJECTED])
def test_a_bad_composition_is_rejected(eqm, given, message):
  with pytest.raises(ValueError, match=message):
    compose(eqm, **given)


def test_models_with_different_vectors_are_not_added(eqm, other, flow):
  with pytest.raises(ValueError, match='--others=.*config.model.c_noise=.*"time".*"none"'):
    compose(eqm, ['3'], others=[str(flow.workdir)])
  with pytest.raises(ValueError, match=r'--labels=1\+2\+3 .*2 models'):
    compose(eqm, ['1+2+3'], others=[str(other.workdir)])
  with pytest.raises(ValueError, match='--weights=1,1 must sum to 1'):
    compose(flow, ['1+2'], weights=['1', '1'])


def placed(place, name, change):
  """A folder with the config of a run, changed, and no checkpoint."""
  folder, config = place / name, json.loads((place / 'eqm' / 'config.json').read_text())
  folder.mkdir(exist_ok=True)
  change(config)
  (folder / 'config.json').write_text(json.dumps(config))
  return str(folder)


def test_models_with_different_decays_are_added_in_a_descent_only(eqm, place, tmp_path, monkeypatch):
  eased = placed(place, 'eased', lambda config: config['output']['decay'].update(start=0.5))
  along = eqm.config.copy_and_resolve_references().unlock()
  along.sample.solver, along.sample.grid = (
      dict(name='ddim'), dict(name='uniform', start=0.999, end=0.001))
  with pytest.raises(ValueError, match='--others=.*eased: its config.output=.*0.5.*0.8'):
    composition.composed(run_of(along, eqm.workdir), ['3'], np.zeros(4, int), others=[eased])
  monkeypatch.setattr(restore, 'restore', lambda run, **_: (7, eqm.model))
  assert len(compose(eqm, ['3'], others=[eased]).models) == 2, 'a descent does not use the decay'


def test_every_model_with_classes_needs_a_label(eqm, place, monkeypatch):
  monkeypatch.setattr(restore, 'restore', lambda run, **_: (7, eqm.model))
  without = eqm.config.copy_and_resolve_references().unlock()
  without.data.num_classes = 0
  with pytest.raises(ValueError, match=r'\[0, 10\] classes.*--labels'):
    composition.composed(run_of(without, eqm.workdir), None, np.zeros(4, int),
                         others=[str(eqm.workdir)])
  asked = composition.composed(run_of(without, eqm.workdir), ['0+7'], np.zeros(4, int),
                               others=[str(eqm.workdir)])
  np.testing.assert_array_equal(asked.columns['labels'], [[0, 7]] * 4)
  plain = placed(place, 'plain', lambda config: config['data'].update(num_classes=0))
  assert len(compose(eqm, None, others=[plain]).models) == 2, 'a model without classes needs no label'


@pytest.mark.parametrize('change,message', [
    (lambda config: config['model'].update(name='unet'), "config.model.name='unet'"),
    (lambda config: config['sample'].pop('threshold'), '.*threshold'),
    (lambda config: config.pop('output'), 'config.output: is missing'),
    (lambda config: config.update(loss=0), 'config.loss=0 '),
])
def test_an_invalid_config_of_a_second_run_names_its_folder(eqm, place, change, message):
  with pytest.raises(ValueError, match='--others=.*broken: .*' + message):
    compose(eqm, ['3'], others=[placed(place, 'broken', change)])
