"""Power EMAs of a run: tracked, saved in snapshots, reconstructed at other widths, rejected by key."""

import json
import shutil

import chex
import jax
from jax import numpy as jnp
import numpy as np
import optax
import pytest

from eqflow.commands import posthoc_ema, train, widths
from eqflow.config import recipes
from eqflow.evaluation import report
from eqflow.runs import restore
from eqflow.runs.run import run_of
from eqflow.training import optimizers, sharding, snapshots, train_state, train_step
from tests.commands.test_train import Interrupted, assert_bitwise_equal, points
from tests.rejected import rejected


def config(**ema):
  """24 steps of 16 with two EMAs, and a snapshot every 4 steps."""
  found = points(num_examples=384, checkpoint_examples=128)
  found.ema.update(dict(decays=(), stds=(0.05, 0.1), snapshot_examples=64) | ema)
  found.sample.params = '0.1'
  return found


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """(config, workdir, last state) of one run; tests do not change it."""
  tmp_path = tmp_path_factory.mktemp('averages')
  found = config()
  return found, tmp_path / 'run', train.train(run_of(found, tmp_path / 'run'))


@pytest.fixture
def copied(trained, tmp_path):
  found, workdir, _ = trained
  return found, shutil.copytree(workdir, tmp_path / 'run')


def test_a_snapshot_is_written_every_64_examples_and_never_deleted(trained):
  _, workdir, state = trained
  assert snapshots.listed(workdir / 'snapshots') == [64, 128, 192, 256, 320, 384]
  last = snapshots.read(workdir / 'snapshots/000000000384.safetensors', '0.05', state.params)
  chex.assert_trees_all_equal(last, state.emas['0.05'])


@pytest.mark.long
def test_a_run_that_is_interrupted_before_a_snapshot_ends_with_the_same_snapshots(
    trained, tmp_path, monkeypatch):
  found, workdir, whole = trained
  keep, at = train.keep_snapshot, []
  def broken(run, state):
    at.append(int(state.step))
    if len(at) == 2:   # At step 8 a checkpoint is due too.
      raise Interrupted
    keep(run, state)
  with monkeypatch.context() as patch:
    patch.setattr(train, 'keep_snapshot', broken)
    with pytest.raises(Interrupted):
      train.train(run_of(found, tmp_path / 'broken'))
  assert at == [4, 8]
  assert_bitwise_equal(train.train(run_of(found, tmp_path / 'broken')), whole)
  paths = sorted((workdir / 'snapshots').iterdir())
  assert len(list((tmp_path / 'broken/snapshots').iterdir())) == len(paths)
  for path in paths:
    again = tmp_path / 'broken/snapshots' / path.name
    assert again.read_bytes() == path.read_bytes(), f'{path.name} differs'


def test_a_tracked_ema_is_reconstructed_exactly_and_others_can_be_sampled(copied, trained, capsys):
  found, workdir = copied
  errors = posthoc_ema.reconstruct(run_of(found, workdir), std=[0.05, 0.12])
  assert errors[0.05] < 1e-6 < errors[0.12]
  with found.unlocked():
    found = found.copy_and_resolve_references()
    found.sample.params = '0.12'
  step, model = restore.restore(run_of(found, workdir))
  assert step == 24 and 'expected error' in capsys.readouterr().out
  stored = json.loads((workdir / 'reconstructed/0.12/expected_error.json').read_text())
  assert stored['expected_error'] == errors[0.12] and stored['examples'] == 384

  like, kept = trained[2].params, trained[2].emas['0.05']
  exact = snapshots.read(workdir / 'reconstructed/0.05/000000000384.safetensors', '0.05', like)
  chex.assert_trees_all_close(exact, kept, atol=1e-5)
  apart = jax.tree.map(lambda a, b: float(jnp.abs(a - b).sum()), trained[2].emas['0.1'],
                       model.params)
  assert sum(jax.tree.leaves(apart)) > 0, 'EMAs of widths 0.1 and 0.12 are equal'


def test_an_ema_of_an_earlier_time_equals_the_snapshot_of_that_time(copied):
  found, workdir = copied
  posthoc_ema.reconstruct(run_of(found, workdir), std=[0.1], examples=192)
  like = jax.eval_shape(recipes.recipe(found).model.init, jax.random.key(0))
  made, then = (snapshots.read(workdir / path / '000000000192.safetensors', '0.1', like)
                for path in ('reconstructed/0.1', 'snapshots'))
  chex.assert_trees_all_close(made, then, atol=1e-5)
  # Between two snapshots the error is larger; the file is named by the time of the EMA.
  between = posthoc_ema.reconstruct(run_of(found, workdir), std=[0.1], examples=200)
  assert between[0.1] > 1e-3 and (workdir / 'reconstructed/0.1/000000000200.safetensors').exists()


def test_the_last_reconstruction_of_a_width_is_sampled(copied):
  found, workdir = copied
  found = found.copy_and_resolve_references()
  with found.unlocked():
    found.sample.params = '0.12'
  for examples, step in ((None, 24), (192, 12), (320, 20)):
    posthoc_ema.reconstruct(run_of(found, workdir), std=[0.12], examples=examples)
    assert restore.restore(run_of(found, workdir))[0] == step
    record = json.loads((workdir / 'reconstructed/0.12/expected_error.json').read_text())
    assert record['examples'] == 16 * step


def test_a_time_after_the_last_snapshot_is_rejected(copied):
  with pytest.raises(ValueError, match=r'--examples=385\b.*\b384\b'):
    posthoc_ema.reconstruct(run_of(*copied), std=[0.1], examples=385)


@pytest.mark.long
def test_a_sweep_evaluates_every_width_and_plots_it(copied, monkeypatch):
  found, workdir = copied
  compared = lambda samples, x, label: [(name, report.compare(*map(report.summary, (x, fake))))
                                        for name, fake in samples.items()]
  monkeypatch.setattr(report, 'compare_all', compared)
  posthoc_ema.sweep(run_of(found, workdir), std=[0.05, 0.12])
  rows = json.loads((workdir / 'sweep.json').read_text())
  assert list(rows) == ['0.05', '0.12'] and (workdir / 'sweep.png').stat().st_size > 5_000
  assert all(np.isfinite(row['frechet_pixels']) for row in rows.values())


def test_a_damaged_snapshot_is_rejected_unless_skip_damaged(copied):
  found, workdir = copied
  whole = posthoc_ema.reconstruct(run_of(found, workdir), std=[0.12])
  path = workdir / 'snapshots/000000000256.safetensors'
  data = bytearray(path.read_bytes())
  data[-1] ^= 1
  path.write_bytes(data)
  with pytest.raises(ValueError, match='000000000256.safetensors'):
    posthoc_ema.reconstruct(run_of(found, workdir), std=[0.12])
  without = posthoc_ema.reconstruct(run_of(found, workdir), std=[0.12], skip_damaged=True)
  assert without[0.12] > whole[0.12], 'fewer snapshots have a larger error'


def test_a_time_without_a_snapshot_suggests_the_nearest_snapshots(copied, capsys):
  found, workdir = copied
  posthoc_ema.reconstruct(run_of(found, workdir), std=[0.12], examples=256)
  assert 'no snapshot' not in capsys.readouterr().out
  posthoc_ema.reconstruct(run_of(found, workdir), std=[0.12], examples=200)
  said = capsys.readouterr().out
  assert 'no snapshot at 200 examples' in said and '--examples=192 or 256' in said


def test_snapshots_of_another_run_are_rejected(copied):
  found, workdir = copied
  with found.unlocked():
    found = found.copy_and_resolve_references()
    found.seed = 5
  (workdir / 'config.json').unlink()
  with pytest.raises(ValueError, match='run '):
    posthoc_ema.reconstruct(run_of(found, workdir), std=[0.12])


def test_an_ema_that_was_not_reconstructed_is_rejected_with_the_command(trained):
  found, workdir, _ = trained
  with found.unlocked():
    found = found.copy_and_resolve_references()
    found.sample.params = '0.2'
  with pytest.raises(FileNotFoundError, match='--mode=reconstruct --std=0.2'):
    restore.restore(run_of(found, workdir))
  with rejected('sample.params', '0.2', '--mode=reconstruct'):
    train.train(run_of(found, workdir))


@pytest.mark.parametrize('changes,key,named', [
    (dict(stds=(0.3,)), 'ema.stds', 0.3),
    (dict(stds=(), decays=(0.999,)), 'sample.params', '0.1'),
    (dict(snapshot_dtype='float16'), 'ema.snapshot_dtype', 'float32'),
])
def test_an_invalid_ema_is_rejected_before_compiling(changes, key, named, tmp_path):
  with rejected(key, named):
    train.train(run_of(config(**changes), tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


def test_snapshots_without_power_emas_are_rejected(tmp_path):
  found = config(stds=(), decays=(0.999,))
  found.sample.params = '0.999'
  with rejected('ema.snapshot_examples', 'ema.stds'):
    train.train(run_of(found, tmp_path / 'run'))


@pytest.mark.parametrize('given, expected', [
    ('0.1', [0.1]), ('0.03,0.05,...,0.11', [0.03, 0.05, 0.07, 0.09, 0.11]),
    ('0.1,0.1,0.2', [0.1, 0.2]), ('0.05,0.1,...,0.22', [0.05, 0.1, 0.15, 0.2, 0.22])])
def test_widths_are_listed_or_continued_in_steps(given, expected):
  assert widths.stds_of(given.split(',')) == expected


@pytest.mark.parametrize('given, message', [
    ('', '0.2887'), ('0.1,0.3', r'0.2887.*\[0.3\]'), ('0.1,wide', "'wide'"),
    ('0.1,...,0.2', r"'\.\.\.'"),
    ('0.1,0.2,...', r"'\.\.\.'"), ('0.2,0.1,...,0.05', r'--std=0.2,0.1,\.\.\.,0.05'),
    ('0.03,0.05,...,0.04', r'--std=0.03,0.05,\.\.\.,0.04'),
    ('0.1,0.10000000001,...,0.2', '1000')])
def test_invalid_widths_are_rejected(given, message):
  with pytest.raises(ValueError, match=message):
    widths.stds_of(given.split(',') if given else None)


def test_a_step_prepares_the_parameters_then_updates_them_then_the_emas():
  mesh = sharding.device_mesh()
  loss = lambda keys, params, batch, histogram: (
      params['w'] * batch['x'], {'error': batch['x'], 't': batch['x']})
  step = train_step.make_step(train_step.gradient_of(loss), optax.sgd(0.5),
                              lambda step, examples, added: {'mean': 0.25}, mesh,
                              prepare=lambda params: jax.tree.map(lambda a: 10 * a, params))
  state = train_state.create(lambda key: {'w': jnp.float32(2)}, optax.sgd(0.5), ['mean'], 0, mesh)
  batch = {'index': np.arange(8, dtype=np.uint32), 'x': np.full(8, 4, np.float32)}
  state, _ = step(state, sharding.place_batch(batch, mesh))
  # 10 w = 20, its gradient 4; the mean moves a quarter of the way from 2.
  assert float(state.params['w']) == 18.0 and float(state.emas['mean']['w']) == 6.0


def test_the_rate_rises_from_zero_then_decays_as_an_inverse_square_root():
  shape = lambda examples: optimizers.inverse_square_root(
      examples, decay_examples=200, rampup_examples=100)
  rate = optimizers.learning_rate(rate=2.0, shape=shape, warmup_examples=0, batch=10)
  found = [float(rate(jnp.int32(count))) for count in (0, 5, 10, 20, 80)]
  np.testing.assert_allclose(found, [0, 1, 2, 2, 1], rtol=1e-6)


def test_the_uncertainty_has_a_gradient():
  found = points()
  found.loss.uncertainty = 8
  recipe = recipes.recipe(found)
  shapes = jax.eval_shape(recipe.model.init, jax.random.key(0))
  params = jax.tree.map(lambda a: jnp.full(a.shape, 0.1, a.dtype), shapes)
  batch = {'x': jnp.ones((16, 2)), 'label': jnp.zeros(16, jnp.int32),
           'index': jnp.arange(16, dtype=jnp.uint32)}
  keys = jax.random.split(jax.random.key(1), 16)
  loss = lambda params: recipe.objective.loss(keys, params, batch, recipe.objective.histogram)[0].mean()
  grads = jax.jit(jax.grad(loss))(params)
  assert np.abs(grads['uncertainty']['linear']['weight']).max() > 0


def test_a_reconstruction_that_fails_keeps_the_one_before(copied, monkeypatch):
  found, workdir = copied
  posthoc_ema.reconstruct(run_of(found, workdir), std=[0.12])
  before = {path.name: path.read_bytes() for path in (workdir / 'reconstructed/0.12').iterdir()}

  def full(*_, **__):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(snapshots, 'write', full)
  with pytest.raises(OSError, match='28'):
    posthoc_ema.reconstruct(run_of(found, workdir), std=[0.12], examples=192)
  assert [path.name for path in (workdir / 'reconstructed').iterdir()] == ['0.12']
  after = {path.name: path.read_bytes() for path in (workdir / 'reconstructed/0.12').iterdir()}
  assert after == before
