"""Pairs of noise and samples are a data set, which a reflow trains on; incomplete ones are rejected."""

import contextlib
import json
import pickle

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np
import pytest

from eqflow import arrays
from eqflow.commands import train
from eqflow.commands.evaluate import evaluate
from eqflow.commands.pairs import draw_pairs
from eqflow.config import consistency, recipes
from eqflow.data import pairs, pipeline, sources
from eqflow.evaluation import report
from eqflow.fields import Model
from eqflow.runs import claim, dataset, generate, restore
from eqflow.runs.run import run_of
from tests import config_file as load
from tests.rejected import rejected


def tiny(name, variant=None, **data):
  """A config that compiles in a second; training moves its network far from zero."""
  config = load(name).get_config(*([variant] if variant else []))
  config.model.update(dict(width=16, depth=1))
  config.data.update(data)
  config.train.update(dict(batch=32, num_examples=320, log_examples=64, sample_examples=10**6,
                           checkpoint_examples=160))
  config.optimizer.update(dict(rate=2e-2, warmup_examples=64))
  config.sample.update(dict(num_steps=4, batch=24, params='params'))
  config.evaluate.num_samples = 40
  return config.lock()


class Flow:
  """A trained model, and 100 pairs drawn from it in one call."""

  def __init__(self, place):
    self.config, self.workdir, self.folder = tiny('toy'), place / 'flow', place / 'pairs'
    train.train(run_of(self.config, self.workdir))
    self.recipe = recipes.recipe(self.config)
    self.step, self.model = restore.restore(run_of(self.config, self.workdir))
    self.made = {'config': json.loads(self.config.to_json_best_effort()), 'step': self.step,
                 'num_classes': 0, 'shape': (2,), 'classes': []}
    self.write(self.folder)

  def write(self, folder, *, pair=None, count=100, seed=0, batch=24, **made):
    folder.mkdir(exist_ok=True)
    generate.write_pairs(pair or self.recipe.sampling.pair, [self.model], folder,
                         np.zeros(count, np.int32), seed=seed, batch=batch, made=self.made | made)


@pytest.fixture(scope='module')
def flow(tmp_path_factory):
  return Flow(tmp_path_factory.mktemp('flow'))


def files(folder):
  return {key: np.load(folder / f'{key}.npy') for key in ('x', 'eps', 'label')}


def test_a_pair_is_noise_and_its_sample(flow):
  found = files(flow.folder)
  assert {key: (a.shape, str(a.dtype)) for key, a in found.items()} == {
      'x': ((100, 2), 'float32'), 'eps': ((100, 2), 'float32'), 'label': ((100,), 'int32')}
  # Four Euler steps of the linear process, by hand.
  predict, z = flow.model.network(flow.model.params), found['eps']
  for t in (1.0, 0.75, 0.5, 0.25):
    z = z - 0.25 * np.asarray(predict(jnp.asarray(z), jnp.full(100, t), None))
  np.testing.assert_allclose(found['x'], z, atol=1e-5)
  assert abs(found['x'] - found['eps']).max() > 0.5, 'the model moves nothing'
  assert abs(np.cov(found['eps'].T) - np.eye(2)).max() < 0.5
  record = pairs.record(flow.folder)
  assert (record['count'], record['written'], record['seed'], record['step']) == (100, 100, 0, 10)
  assert record['config']['sample']['solver'] == {'name': 'ddim'}


def test_pairs_and_samples_of_a_seed_have_different_noise(flow):
  label = np.zeros(100, np.int32)
  x, *_ = generate.samples(flow.recipe.sampling, [flow.model], label, seed=0, batch=24)
  assert not np.isin(files(flow.folder)['x'], x).any(), 'evaluation would use the noise of training'


class Interrupted(Exception):
  pass


def test_interrupted_pairs_continue_to_the_same_pairs(flow, tmp_path):
  calls = []
  def breaks(*args):
    calls.append(1)
    if len(calls) > 2:
      raise Interrupted
    return flow.recipe.sampling.pair(*args)
  with pytest.raises(Interrupted):
    flow.write(tmp_path / 'pairs', pair=breaks)
  with pytest.raises(ValueError, match='48 of 100 pairs'):
    sources.load('pairs', split='train', data_dir=tmp_path / 'pairs')
  flow.write(tmp_path / 'pairs')
  for key, a in files(flow.folder).items():
    np.testing.assert_array_equal(files(tmp_path / 'pairs')[key], a, err_msg=key)
  # Complete pairs are not drawn again.
  flow.write(tmp_path / 'pairs', pair=breaks)


def test_pairs_that_are_not_finite_are_rejected(flow, tmp_path):
  def broken(*args):
    eps, x, norms = flow.recipe.sampling.pair(*args)
    return eps, x.at[3].set(jnp.nan), norms
  with pytest.raises(FloatingPointError, match=r'\b1 of 24\b'):
    flow.write(tmp_path / 'pairs', pair=broken)
  assert pairs.record(tmp_path / 'pairs')['written'] == 0


def test_pairs_of_another_model_seed_or_count_are_rejected(flow):
  for change, words in ((dict(seed=1), 'seed: 0 there, 1'), (dict(step=11), 'step: 10 there, 11'),
                        (dict(count=7), 'count: 100 there, 7')):
    with pytest.raises(ValueError, match=words):
      flow.write(flow.folder, **change)
  other = json.loads(json.dumps(flow.made['config']))
  other['sample']['num_steps'] = 5
  with pytest.raises(ValueError, match=r'config.sample.num_steps: 4 there, 5'):
    flow.write(flow.folder, config=other)


def test_batches_pair_noise_with_its_data(flow):
  source = sources.load('pairs', split='train', data_dir=flow.folder)
  assert (len(source), source.shape, source.num_classes) == (100, (2,), 0)
  whole = files(flow.folder)
  for given, workers in ((source, 0), (pickle.loads(pickle.dumps(source)), 1)):
    with contextlib.closing(pipeline.batches(given, seed=3, batch=30, workers=workers)) as batches:
      for _ in range(5):
        batch = next(batches)
        rows = pipeline.record_index(100, 3, batch['index'].astype(np.int64))
        assert {key: str(a.dtype) for key, a in batch.items()} == {
            'x': 'float32', 'eps': 'float32', 'label': 'int32', 'index': 'uint32'}
        for key, a in whole.items():
          np.testing.assert_array_equal(batch[key], a[rows], err_msg=key)
  assert len(pickle.dumps(source)) < 5_000, 'pickled with all its pairs'
  x, label = pipeline.arrays(source)
  np.testing.assert_array_equal(x, whole['x'])
  np.testing.assert_array_equal(source[7]['eps'], whole['eps'][7])


def test_incomplete_or_damaged_pairs_are_rejected(flow, tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no pairs in .*nowhere: .*\n.*--mode=pairs'):
    sources.load('pairs', split='train', data_dir=tmp_path / 'nowhere')
  with pytest.raises(ValueError, match=r"'heldout'.*\['all', 'train'\]"):
    sources.load('pairs', split='heldout', data_dir=flow.folder)
  flow.write(tmp_path / 'pairs', count=10)
  np.save(tmp_path / 'pairs/x.npy', np.zeros((9, 2), np.float32))
  with pytest.raises(ValueError, match=r"'x': \(9, 2\)"):
    sources.load('pairs', split='train', data_dir=tmp_path / 'pairs')
  (tmp_path / 'pairs/eps.npy').write_bytes(b'nothing')
  with pytest.raises(ValueError, match='not readable.*magic string'):
    sources.load('pairs', split='train', data_dir=tmp_path / 'pairs')


def test_mirroring_pairs_is_rejected(flow):
  images = tiny('reflow', 'digits', flip=True)
  with rejected('data.flip', True, 'pairs'):
    recipes.recipe(images)
  source = sources.load('pairs', split='train', data_dir=flow.folder)
  with pytest.raises(ValueError, match='flip=True'):
    pipeline.batches(source, seed=0, batch=4, flip=True)


def test_pairs_need_a_solver_that_is_not_stochastic():
  config = tiny('toy')
  with config.unlocked():
    config.sample.solver = dict(name='ancestral')
  recipe, other = recipes.recipe(config), recipes.recipe(tiny('toy', 'eqm'))
  with rejected('sample.solver.name', 'ancestral', 'ddim'):
    consistency.check_pairs(config, recipe.sampling)
  consistency.check_pairs(config, other.sampling)


def test_a_reflow_trains_on_pairs_and_is_compared_with_data(
    flow, tmp_path, monkeypatch, capsys):
  config = tiny('reflow', 'moons', dir=str(flow.folder))
  train.train(run_of(config, tmp_path / 'reflow'))
  monkeypatch.setattr(report, 'compare_all', lambda samples, x, label: [
      (name, {'records': float(len(x))}) for name in samples])
  assert evaluate(run_of(config, tmp_path / 'reflow')) == {'reflow, step 10': {'records': 10_000}}
  said = capsys.readouterr()
  assert 'against 10,000 records of moons' in said.out
  words = 'compiling the training', 'reading 10,000 records', 'sampling 40 samples', 'computing the'
  found = [said.err.find(each) for each in words]
  assert found == sorted(found) and found[0] >= 0, f'a word before each silence, not {said.err}'
  assert (dataset.evaluation_source(run_of(config, tmp_path)).records.x == dataset.evaluation_source(
      run_of(flow.config, flow.workdir)).records.x).all()
  # A run rejects other pairs in the same folder.
  flow.write(tmp_path / 'others', seed=5)
  moved = tiny('reflow', 'moons', dir=str(tmp_path / 'others'))
  with pytest.raises(ValueError, match=r"'x.npy' has another content"):
    train.train(run_of(moved, tmp_path / 'reflow'))


def test_the_loss_of_a_reflow_uses_the_noise_of_its_pairs(flow):
  recipe = recipes.recipe(tiny('reflow', 'moons', dir=str(flow.folder)))
  batch = pipeline.gather(sources.load('pairs', split='train', data_dir=flow.folder), np.arange(50))
  batch['index'] = np.arange(50, dtype=np.uint32)
  # A new network is zero, so the loss is the mean square of its target.
  loss, _ = jax.jit(lambda keys: recipe.objective.loss(keys, recipe.model.init(keys[0]), batch))(
      jax.random.split(jax.random.key(0), 50))
  np.testing.assert_allclose(loss, np.square(batch['eps'] - batch['x']).mean(1), rtol=1e-4)


def test_the_command_draws_pairs(flow, tmp_path, capsys):
  draw = lambda: draw_pairs(run_of(flow.config, flow.workdir), out=tmp_path / 'pairs', num_samples=30,
                            seed=2)
  draw()
  said = capsys.readouterr().out
  assert said.startswith('30 pairs') and 'step 10' in said and said.endswith(f'{tmp_path}/pairs\n')
  flow.write(tmp_path / 'by hand', count=30, seed=2)
  np.testing.assert_array_equal(files(tmp_path / 'pairs')['x'], files(tmp_path / 'by hand')['x'])
  assert pairs.record(tmp_path / 'pairs') == pairs.record(tmp_path / 'by hand')
  with claim.locked(tmp_path / 'pairs', 'writing to', '--out'):
    with pytest.raises(ValueError, match='--out'):
      draw()


def test_the_command_counts_the_pairs_that_did_not_converge(flow, tmp_path, capsys, monkeypatch):
  config = tiny('toy', 'eqm')
  with config.unlocked():
    config.sample.update(dict(threshold=0.5, num_steps=7))
    config.sample.solver = dict(name='gradient_descent', step_size=0.1)
  field = lambda z, t, condition: z
  recipe = recipes.recipe(config)
  monkeypatch.setattr(recipes, 'recipe', lambda config: recipe)
  monkeypatch.setattr(restore, 'restore',
                      lambda run, **_: (10, Model(Partial(lambda params: field), {})))
  draw = lambda: draw_pairs(run_of(config, tmp_path), out=tmp_path / 'pairs', num_samples=100, seed=2)
  draw()
  found = files(tmp_path / 'pairs')
  # For f(z) = z the field of step k is eps 0.9^k; the seventh step has k = 6.
  norms = 0.9**6 * np.linalg.norm(found['eps'], axis=1)
  bad = norms >= 0.5
  assert 10 < bad.sum() < 90 and abs(norms - 0.5).min() > 1e-4
  out = capsys.readouterr().out
  assert f'{bad.sum()} of 100 did not converge: after config.sample.num_steps=7 steps' in out
  assert f'{np.median(norms[bad]):.3g}, above config.sample.threshold=0.5' in out
  assert 'earlier' not in out
  # Nothing is known about the convergence of existing pairs.
  pairs._write_record(tmp_path / 'pairs/pairs.json', pairs.record(tmp_path / 'pairs') | {'written': 48})
  draw()
  out = capsys.readouterr().out
  assert '48 of them from an earlier call' in out and f'{bad[48:].sum()} of 52 did not converge' in out


def test_pairs_have_the_labels_of_the_model(tmp_path):
  recipe = recipes.recipe(tiny('toy', num_classes=2))
  start = jax.jit(recipe.model.init)(jax.random.key(0))
  params = jax.tree.map(lambda p: p + np.float32(0.1), jax.device_get(start))
  labels = generate.labels_of(0, 20, 2)
  tmp_path.joinpath('pairs').mkdir()
  models = [Model(recipe.model.network, params)]
  generate.write_pairs(recipe.sampling.pair, models, tmp_path / 'pairs', labels, seed=0, batch=24,
                       made={'num_classes': 2, 'shape': (2,)})
  source = sources.load('pairs', split='all', data_dir=tmp_path / 'pairs')
  assert source.num_classes == 2
  found = pipeline.gather(source, np.arange(20))
  np.testing.assert_array_equal(found['label'], labels)
  keys = arrays.example_keys(0, jnp.arange(20))
  again = lambda label: recipe.sampling.pair(models, keys, jnp.asarray(label))[1]
  np.testing.assert_allclose(found['x'], again(labels), atol=1e-5)
  assert (abs(found['x'] - again(1 - labels)).max(1) > 1e-4).all(), 'the label changes nothing'
