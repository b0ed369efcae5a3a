"""What a field that is descended can do besides samples: finish inputs, score them, be added."""

import json
import pickle

from jax import numpy as jnp
import numpy as np
from PIL import Image
import pytest

from eqflow.commands.denoise import denoise
from eqflow.commands.ood import detect
from eqflow.config import recipes
from eqflow.data import inputs
from eqflow.runs import dataset, generate, restore
from tests.untrained import SHAPE, Run, recipe_of, tiny

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
  """Each folder has its model instead of a checkpoint."""
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
