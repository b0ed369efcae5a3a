"""What a field that is descended can do besides samples: finish inputs, score them, be added."""

import json
import pickle

import jax
from jax import numpy as jnp
import numpy as np
from PIL import Image
import pytest

from eqflow import fields, guidance
from eqflow.commands.denoise import denoise
from eqflow.commands.ood import detect
from eqflow.config import recipes
from eqflow.data import inputs
from eqflow.fields import Model
from eqflow.runs import composition, dataset, generate, identity, restore
from eqflow.runs.compatibility import SINCE
from tests import config_file as load

SHAPE = 8, 8, 1


def tiny(place, variant='eqm', **changed):
  config = load('digits').get_config(variant)
  config.data.dir = str(place / 'data')
  config.model.update(dict(width=16, depth=1, heads=2))
  config.sample.update(dict(num_steps=4, batch=8, params='params') | changed)
  config.evaluate.num_samples = 12
  return config.lock()


class Run:
  """A model as train would leave it, its network far from zero."""

  def __init__(self, place, name, seed, variant='eqm'):
    self.config, self.workdir = tiny(place, variant), place / name
    self.workdir.mkdir()
    (self.workdir / 'config.json').write_text(self.config.to_json_best_effort())
    self.recipe, rng = recipe_of(self.config), np.random.default_rng(seed)
    shapes = jax.eval_shape(self.recipe.model.init, jax.random.key(0))
    self.params = jax.tree.map(lambda a: 0.3 * rng.normal(size=a.shape).astype(a.dtype), shapes)
    # Four examples wherever it is called: it compiles once.
    self.model = Model(self.recipe.model.network, self.params)
    self.model = Model(self.recipe.model.network, self.params)
    self.predict = jax.jit(self.recipe.model.network(self.params))

  def changed(self, **changed):
    config = self.config.copy_and_resolve_references().unlock()
    config.sample.update(changed)
    return config.lock()


RECIPES, BUILD = {}, recipes.recipe


def recipe_of(config):
  """build.recipe, the same one for the same config: what it compiles is then compiled once."""
  key = config.to_json_best_effort()
  if key not in RECIPES:
    RECIPES[key] = BUILD(config)
  return RECIPES[key]


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  return tmp_path_factory.mktemp('runs')


@pytest.fixture(scope='module')
def eqm(place):
  return Run(place, 'eqm', 1)


@pytest.fixture(scope='module')
def other(place):
  return Run(place, 'other', 2)


@pytest.fixture(scope='module')
def flow(place):
  return Run(place, 'flow', 3, 'flow')


@pytest.fixture(autouse=True)
def restored(eqm, other, flow, monkeypatch):
  """Checkpoints are test_main's: here every folder holds what its model was made with."""
  models = {run.workdir: run.model for run in (eqm, other, flow)}
  monkeypatch.setattr(recipes, 'recipe', recipe_of)
  monkeypatch.setattr(restore, 'restore', lambda config, recipe, workdir, **_: (7, models[workdir]))


def saved(path, **arrays):
  np.savez(path, **arrays)
  return path


def loaded(path):
  with np.load(path) as file:
    return dict(file)


def noisy(count, seed=0):
  return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(np.float32)


def test_an_input_is_descended_from_where_it_stands(eqm, tmp_path):
  x, label = noisy(4), np.array([3, 1, 4, 1])
  path = saved(tmp_path / 'x.npz', samples=x, labels=label)
  denoise(eqm.config, eqm.workdir, inputs=path, seed=1)
  found, z = loaded(eqm.workdir / 'denoised-seed1.npz'), x
  for _ in range(4):
    z = z - 0.003 * np.asarray(eqm.predict(jnp.asarray(z), jnp.zeros(4), jnp.asarray(label, jnp.int32)))
  np.testing.assert_allclose(found['samples'], z, atol=1e-5)
  assert abs(z - x).max() > 1e-3, 'the model moves nothing'
  np.testing.assert_array_equal(found['inputs'], x)
  np.testing.assert_array_equal(found['started'], x)
  np.testing.assert_array_equal(found['labels'], label)
  with Image.open(eqm.workdir / 'denoised-seed1.png') as picture:
    assert picture.size == (4 * 33 + 1, 2 * 33 + 1), 'four inputs above what became of them'


def test_what_is_all_noise_becomes_the_samples_of_the_seed(eqm, tmp_path, capsys):
  path = saved(tmp_path / 'x.npz', x=np.full((9, *SHAPE), 255, np.uint8))
  denoise(eqm.config, eqm.workdir, inputs=path, seed=5, noise=1.0, labels=['7'])
  found = loaded(eqm.workdir / 'denoised-seed5.npz')
  want, evaluations, _ = generate.samples(eqm.recipe.sampling, [eqm.model], np.full(9, 7), seed=5,
                                          batch=8)
  np.testing.assert_allclose(found['samples'], want, atol=1e-5)
  np.testing.assert_array_equal(found['evaluations'], evaluations)
  np.testing.assert_array_equal(found['inputs'], 1)
  denoise(eqm.config, eqm.workdir, inputs=path, seed=5, noise=0.25, labels=['7'])
  half = loaded(eqm.workdir / 'denoised-seed5.npz')['started']
  np.testing.assert_allclose(half, 0.75 + 0.25 * found['started'], atol=1e-6)
  assert 'mixed with noise at t=0.25, denoised' in capsys.readouterr().out


def test_those_that_do_not_converge_are_counted(eqm, tmp_path, capsys):
  path = saved(tmp_path / 'x.npz', x=noisy(6), labels=np.arange(6))
  denoise(eqm.changed(threshold=1e6), eqm.workdir, inputs=path, seed=2)
  found = loaded(eqm.workdir / 'denoised-seed2.npz')
  np.testing.assert_array_equal(found['samples'], found['inputs'])
  np.testing.assert_array_equal(found['evaluations'], 1)
  assert 'did not converge' not in capsys.readouterr().out
  norms = np.sort(found['norms'])
  denoise(eqm.changed(threshold=float(norms[:2].mean()), num_steps=1), eqm.workdir, inputs=path, seed=2)
  out = capsys.readouterr().out
  assert '5 of 6 did not converge: after config.sample.num_steps=1 steps' in out
  assert f'at the median it was {np.median(norms[1:]):.3g}' in out


def test_a_model_that_is_told_the_time_starts_where_it_is_told(flow, tmp_path):
  x = noisy(4)
  path = saved(tmp_path / 'x.npz', x=x, labels=np.zeros(4, int))
  with pytest.raises(ValueError, match='cannot know how much noise the inputs hold: give --noise=t'):
    denoise(flow.config, flow.workdir, inputs=path, seed=0)
  denoise(flow.config, flow.workdir, inputs=path, seed=0, noise=0.6)
  found = loaded(flow.workdir / 'denoised-seed0.npz')
  z = found['started']
  # Euler's steps on the linear path, by hand: from 0.6 on through the grid of four steps.
  for t, s in [(0.6, 0.5), (0.5, 0.25), (0.25, 0.0)]:
    u = flow.predict(jnp.asarray(z), jnp.full(4, t), jnp.zeros(4, jnp.int32))
    z = z + (s - t) * np.asarray(u)
  np.testing.assert_allclose(found['samples'], z, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(found['evaluations'], 3)


@pytest.mark.parametrize('noise', [0.0, -0.5, 1.5, float('nan')])
def test_noise_is_a_time_of_the_process(eqm, tmp_path, noise):
  path = saved(tmp_path / 'x.npz', x=noisy(3), labels=np.zeros(3, int))
  with pytest.raises(ValueError, match='--noise=.*give a time above 0, the data, and at most 1'):
    denoise(eqm.config, eqm.workdir, inputs=path, seed=0, noise=noise)


def test_a_class_is_needed_where_the_model_was_not_trained_without(eqm, place, tmp_path):
  path = saved(tmp_path / 'x.npz', x=noisy(3))
  with pytest.raises(ValueError, match="was not trained to do without: give --labels.*with 'labels'"):
    denoise(eqm.config, eqm.workdir, inputs=path, seed=0)
  with pytest.raises(ValueError, match="'labels' go from 3 to 12"):
    denoise(eqm.config, eqm.workdir, inputs=saved(path, x=noisy(2), labels=np.array([3, 12])))
  with pytest.raises(ValueError, match='labels. go from 3 to 4294967299'):
    denoise(eqm.config, eqm.workdir, inputs=saved(path, x=noisy(2), labels=np.array([3, 2**32 + 3])))


@pytest.mark.parametrize('labels', [np.array([0.0, 1.0]), np.arange(3), np.eye(10, dtype=int)[:2]])
def test_labels_that_are_no_classes_are_not_taken_for_none(eqm, tmp_path, labels):
  config = eqm.config.copy_and_resolve_references().unlock()
  config.train.drop_label = 0.1
  path = saved(tmp_path / 'x.npz', x=noisy(2), labels=labels)
  with pytest.raises(ValueError, match="'labels' are .* give one whole number for each of 2 inputs"):
    denoise(config, eqm.workdir, inputs=path, seed=0)


def test_no_class_is_needed_where_a_scale_of_ones_guides_nothing(eqm, tmp_path):
  path = saved(tmp_path / 'x.npz', x=noisy(3))
  config = eqm.config.copy_and_resolve_references().unlock()
  config.train.drop_label = 0.1
  with config.ignore_type():
    config.sample.scale = (1.0,)
  denoise(config, eqm.workdir, inputs=path, seed=4)
  np.testing.assert_array_equal(loaded(eqm.workdir / 'denoised-seed4.npz')['labels'], 10)
  with config.ignore_type():
    config.sample.scale = (2.0,)
  with pytest.raises(ValueError, match='was not trained to do without: give --labels'):
    denoise(config, eqm.workdir, inputs=path, seed=4)


BAD = [
    (dict(x=np.zeros((3, 8, 8), np.float32)), r'shape \(3, 8, 8\), but config.data.shape=\(8, 8, 1\)'),
    (dict(x=np.zeros((0, *SHAPE), np.float32)), 'n of 1 or more'),
    (dict(images=np.zeros((3, *SHAPE))), r"holds \['images'\]: name its inputs 'x'"),
    (dict(x=np.zeros((3, *SHAPE), np.int64)), 'inputs of int64: give floating ones'),
    (dict(x=np.full((3, *SHAPE), np.nan)), '3 of 3 inputs are not finite'),
]


@pytest.mark.parametrize('arrays,message', BAD, ids=[message[:20] for _, message in BAD])
def test_inputs_of_another_kind_are_refused(tmp_path, arrays, message):
  with pytest.raises(ValueError, match=message):
    inputs.read(saved(tmp_path / 'x.npz', **arrays), SHAPE)


class Canary:
  """What a pickle would run when it is read."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (str(self.path), 'w')


@pytest.mark.parametrize('write', [
    lambda path, thing: path.write_bytes(pickle.dumps(thing)),
    lambda path, thing: np.save(path, np.array([thing]), allow_pickle=True),
    lambda path, thing: path.write_text('no numbers')])
def test_no_file_of_inputs_is_unpickled(tmp_path, write):
  path, canary = tmp_path / 'x.npy', tmp_path / 'canary'
  write(path, Canary(canary))
  with pytest.raises(ValueError, match='x.npy is no .npy or .npz file of numbers'):
    inputs.read(path, SHAPE)
  assert not canary.exists(), 'the file was unpickled, and what it holds was run'
  with pytest.raises(FileNotFoundError, match='no file .*nothing.npy to read inputs from'):
    inputs.read(tmp_path / 'nothing.npy', SHAPE)


def ask(model, labels, count=4, **more):
  return composition.composed(model.config, model.workdir, labels, generate.labels_of(0, count, 10),
                              **more)


def drawn(asked):
  return generate.samples(asked.sampling, asked.models, asked.labels, seed=0, batch=8)[0]


def test_joined_classes_are_descended_on_the_sum_of_their_fields(eqm):
  asked = ask(eqm, ['3+5', '1'], weights=None)
  z = np.stack([np.asarray(jax.random.normal(key, SHAPE)) for key in _noise_keys(4)])
  for _ in range(4):
    field = lambda *classes: np.asarray(eqm.predict(
        jnp.asarray(z), jnp.zeros(4), jnp.array(classes, jnp.int32)))
    z = z - 0.003 * (field(3, 1, 3, 1) + field(5, 1, 5, 1)) / 2
  np.testing.assert_allclose(drawn(asked), z, atol=1e-5)
  np.testing.assert_array_equal(asked.columns['labels'], [[3, 5], [1, -1]] * 2)
  np.testing.assert_allclose(asked.columns['weights'], [[0.5, 0.5], [1, 0]] * 2)


def _noise_keys(count):
  # Sample i's noise, as the README says: folded from (seed, i), then 0 for noise, then 0 for the leaf.
  for i in range(count):
    key = jax.random.fold_in(jax.random.key(0), i)
    yield jax.random.fold_in(jax.random.fold_in(key, 0), 0)


def test_weights_scale_each_field(eqm):
  alone, doubled = drawn(ask(eqm, ['3'])), drawn(ask(eqm, ['3+5'], weights=['1', '0']))
  np.testing.assert_allclose(doubled, alone, atol=1e-5)
  twice = ask(eqm, ['3+3'], weights=['1', '1'])
  one = eqm.changed(solver=dict(name='gradient_descent', step_size=0.006))
  labels = np.full(4, 3)
  want = generate.samples(recipe_of(one).sampling, [eqm.model], labels, seed=0, batch=8)[0]
  np.testing.assert_allclose(drawn(twice), want, atol=1e-5)
  assert abs(want - alone).max() > 1e-3


def test_two_models_are_descended_on_the_sum_of_their_fields(eqm, other):
  found = drawn(ask(eqm, ['3+5', '1'], weights=['0.25', '1.5'], others=[str(other.workdir)]))
  predict = guidance.added([fields.bind(eqm.predict, jnp.array([3, 1, 3, 1])),
                          fields.bind(other.predict, jnp.array([5, 1, 5, 1]))], [0.25, 1.5])
  z = jnp.stack([jax.random.normal(key, SHAPE) for key in _noise_keys(4)])
  for _ in range(4):
    z = z - 0.003 * predict(z, jnp.zeros(4))
  np.testing.assert_allclose(found, z, atol=1e-5)


REFUSED = [
    (dict(labels=['3+12']), r'--labels=3\+12: choose from 0 to 9'),
    (dict(labels=['3+']), r'--labels=3\+: choose from 0 to 9'),
    (dict(labels=['3+5', '1'], weights=['1', '1']), 'a finite number for each of the 1 or 2 fields'),
    (dict(labels=['3+5'], weights=['1', 'nan']), 'a finite number for each of the 2 fields'),
    (dict(labels=['3+5'], weights=['1', 'x']), 'a finite number for each of the 2 fields'),
    (dict(labels=['3'], others=['/nowhere']), '--others=/nowhere: there is no run'),
]


@pytest.mark.parametrize('given,message', REFUSED, ids=[message for _, message in REFUSED])
def test_what_cannot_be_composed_is_refused(eqm, given, message):
  with pytest.raises(ValueError, match=message):
    ask(eqm, **given)


def test_models_of_another_kind_are_not_added(eqm, other, flow):
  with pytest.raises(ValueError, match='--others=.*its config.model.label_noise is .*"time".*"none"'):
    ask(eqm, ['3'], others=[str(flow.workdir)])
  with pytest.raises(ValueError, match=r'--labels=1\+2\+3: with 2 models'):
    ask(eqm, ['1+2+3'], others=[str(other.workdir)])
  with pytest.raises(ValueError, match='--weights=1,1: along times weights sum to 1'):
    ask(flow, ['1+2'], weights=['1', '1'])


def placed(place, name, change):
  """A folder with the config of a run, changed, and no checkpoint."""
  folder, config = place / name, json.loads((place / 'eqm' / 'config.json').read_text())
  folder.mkdir(exist_ok=True)
  change(config)
  (folder / 'config.json').write_text(json.dumps(config))
  return str(folder)


def test_along_times_models_of_other_decays_are_not_added(eqm, place, tmp_path, monkeypatch):
  eased = placed(place, 'eased', lambda config: config['output']['decay'].update(start=0.5))
  along = eqm.config.copy_and_resolve_references().unlock()
  along.sample.solver, along.sample.grid = (
      dict(name='ddim'), dict(name='uniform', start=0.999, end=0.001))
  with pytest.raises(ValueError, match='--others=.*eased: its config.output is .*0.5.*0.8'):
    composition.composed(along, eqm.workdir, ['3'], np.zeros(4, int), others=[eased])
  monkeypatch.setattr(restore, 'restore', lambda config, recipe, workdir, **_: (7, eqm.model))
  assert len(ask(eqm, ['3'], others=[eased]).models) == 2, 'a descent needs no decay'


def test_no_class_is_asked_of_a_model_that_was_not_named(eqm, place, monkeypatch):
  monkeypatch.setattr(restore, 'restore', lambda config, recipe, workdir, **_: (7, eqm.model))
  without = eqm.config.copy_and_resolve_references().unlock()
  without.data.num_classes = 0
  with pytest.raises(ValueError, match=r'the models have \[0, 10\] classes: give --labels'):
    composition.composed(without, eqm.workdir, None, np.zeros(4, int), others=[str(eqm.workdir)])
  asked = composition.composed(without, eqm.workdir, ['0+7'], np.zeros(4, int),
                               others=[str(eqm.workdir)])
  np.testing.assert_array_equal(asked.columns['labels'], [[0, 7]] * 4)
  plain = placed(place, 'plain', lambda config: config['data'].update(num_classes=0))
  assert len(ask(eqm, None, others=[plain]).models) == 2, 'a model without classes is asked for none'


def test_a_run_from_before_a_key_is_added_as_it_was(eqm, place, monkeypatch):
  def older(config):
    del config['energy'], config['model']['final_scale']
    for key in ('coupling', 'at_data', 'dispersive'):
      del config['loss'][key]
    del config['mesh'], config['train']['stuck_seconds']
  folder, seen = placed(place, 'older', older), []
  monkeypatch.setattr(
      restore, 'restore',
      lambda config, *_, **__: (seen.append(identity.flat(config)), (7, eqm.model))[1])
  ask(eqm, ['3'], others=[folder])
  # A network's own number, which not every one has, is its module's default.
  since = {key: value for key, value in SINCE.items() if not key.startswith('model.')}
  assert {key: seen[1][key] for key in since} == since


@pytest.mark.parametrize('change,message', [
    (lambda config: config['model'].update(name='unet'), "config.model.name='unet'"),
    (lambda config: config['sample'].pop('threshold'), '.*threshold'),
    (lambda config: config.pop('output'), 'not as this version writes one .*output'),
    (lambda config: config.update(loss=0), 'not as this version writes one'),
])
def test_what_is_wrong_with_another_run_names_its_folder(eqm, place, change, message):
  with pytest.raises(ValueError, match='--others=.*broken: .*' + message):
    ask(eqm, ['3'], others=[placed(place, 'broken', change)])


def test_scores_of_every_input_are_the_least_over_classes(eqm, tmp_path, capsys):
  x = 3 * noisy(4)
  rows = detect(eqm.config, eqm.workdir, inputs=saved(tmp_path / 'far.npz', x=x))
  found = loaded(eqm.workdir / 'ood-far.npz')
  field = lambda y: np.asarray(eqm.predict(jnp.asarray(x), jnp.zeros(4), jnp.full(4, y, jnp.int32)))
  norms = np.stack([np.linalg.norm(field(y).reshape(4, -1), axis=1) for y in range(10)])
  np.testing.assert_allclose(found['gradient_norm'], norms.min(0), rtol=1e-4)
  np.testing.assert_array_equal(found['class'], norms.argmin(0))
  assert found['inside_gradient_norm'].shape == (12,), 'config.evaluate.num_samples records are inside'
  assert set(rows) == {'gradient_norm', 'descent_drop', 'nearest_record'}
  assert rows['nearest_record']['AUROC'] == 1, 'noise three times as wide is far from every digit'
  inside, outside = found['inside_descent_drop'], found['descent_drop']
  wins = np.mean(inside[:, np.newaxis] < outside)
  np.testing.assert_allclose(rows['descent_drop']['AUROC'], wins, rtol=1e-12)
  assert (found['descent_drop'] > 0).all()
  told = json.loads((eqm.workdir / 'ood-far.json').read_text())
  assert told['rows'] == rows and (told['num_inputs'], told['num_inside']) == (4, 12)
  assert 'on which the model was trained' in capsys.readouterr().out


def test_records_of_splits_that_overlap_are_not_near_to_themselves(eqm, tmp_path, capsys):
  config = eqm.config.copy_and_resolve_references().unlock()
  config.data.split, config.evaluate.num_samples = 'train', 1_797
  # Few evaluations: what is looked at needs no model.
  config.sample.solver = dict(name='adam', step_size=0.003)
  config.sample.batch = 600
  detect(config, eqm.workdir, inputs=saved(tmp_path / 'all.npz', x=noisy(3)))
  train, everything = dataset.training_records(config), dataset.training_records(eqm.config)
  found = loaded(eqm.workdir / 'ood-all.npz')['inside_nearest_record']
  space = train.reshape(len(train), -1).astype(np.float64)
  for i in (0, len(train) - 1, len(train), len(everything) - 1):
    far = np.square(space - everything[i].reshape(-1)).sum(1)
    np.testing.assert_allclose(found[i], np.min(far[far > 0]), rtol=1e-6)
  assert found.min() > 0
  assert f'on {len(train):,} of which the model was trained' in capsys.readouterr().out


@pytest.mark.parametrize('solver,drops', [
    (dict(name='adam', step_size=0.003), False),
    (dict(name='momentum', step_size=0.003, momentum=0.9), False),
    (dict(name='langevin', step_size=0.003, temperature=0.0), False),
    (dict(name='nesterov', step_size=0.003, momentum=0.3), True)], ids=lambda each: str(each)[:20])
def test_only_steps_along_the_field_drop(eqm, tmp_path, solver, drops):
  config = eqm.config.copy_and_resolve_references().unlock()
  config.sample.solver = solver
  rows = detect(config, eqm.workdir, inputs=saved(tmp_path / 'few.npz', x=noisy(3)))
  assert ('descent_drop' in rows) == drops


def test_only_a_blind_field_that_is_small_at_data_scores(flow, place, tmp_path):
  path = saved(tmp_path / 'x.npz', x=noisy(3))
  with pytest.raises(ValueError, match="label_noise.name='time', but the time of an input is unknown"):
    detect(flow.config, flow.workdir, inputs=path)
  config = tiny(place, 'blind_flow').copy_and_resolve_references().unlock()
  config.output.name = 'eps'
  with pytest.raises(ValueError, match="output.name='eps' is not small at data"):
    detect(config, flow.workdir, inputs=path)
