"""Steps that are not finite are skipped, counted and reported; and the loss scale of float16."""

import json

import jax
from jax import numpy as jnp
import numpy as np
import optax
import pytest
from tensorboardX import event_file_writer
from tensorboardX.proto import event_pb2

from eqflow import ema
from eqflow.commands import train
from eqflow.config import recipes
from eqflow.runs.run import run_of
from eqflow.training import logging, nonfinite, sharding, train_state, train_step
from tests import config_file as load
from tests.faults import logs
from tests.rejected import rejected


def regression(dtype=jnp.float32, size=1.0):
  """params -> losses size (w x - y)^2, computed in `dtype`."""
  def loss(keys, params, batch, histogram):
    made = batch['x'].astype(dtype) @ params['w'].astype(dtype)
    losses = size * (made[:, 0].astype(jnp.float32) - batch['y']) ** 2
    return losses, {'error': losses, 't': losses}
  return loss


def started(*, skip=True, scale=1.0, loss=None, accumulate=1):
  mesh = sharding.device_mesh(jax.devices()[:1])
  adam = optax.adam(0.1)
  init = lambda key: {'w': jax.random.normal(key, (3, 1))}
  share = lambda step, examples, added: {'mean': 0.25}
  state = train_state.create(init, adam, ['mean'], 0, mesh, scale=scale)
  gradient = train_step.gradient_of(loss or regression(), accumulate=accumulate, scaled=scale != 1)
  rule = nonfinite.rescaled if scale != 1 else nonfinite.counted
  step = train_step.make_step(gradient, adam, share, mesh, skip=rule if skip else None)
  return state, step


def batch(i, **changes):
  rng = np.random.default_rng(i)
  x = rng.normal(size=(8, 3)).astype(np.float32)
  return {'x': x, 'y': x.sum(1), 'index': np.arange(8 * i, 8 * i + 8, dtype=np.uint32)} | changes


def host(tree):
  return jax.tree.map(np.array, tree)


@pytest.mark.parametrize('bad,accumulate', [(np.nan, 1), (1e30, 2), *(
    pytest.param(*case, marks=pytest.mark.long)
    for case in [(np.nan, 2), (np.inf, 1), (np.inf, 2), (1e30, 1)])], ids=str)
def test_a_step_that_is_not_finite_only_advances_the_position_in_the_data(bad, accumulate):
  state, step = started(accumulate=accumulate)
  x = batch(1)['x']
  x[3, 1] = bad
  state, _ = step(state, batch(0))
  before = host(state)
  state, health = step(state, batch(1, x=x))
  assert not np.isfinite(np.asarray(health[:2])).all() and int(health.skipped_in_a_row) == 1
  for name in ('params', 'opt_state', 'emas', 'histogram', 'seed', 'sums'):
    jax.tree.map(np.testing.assert_array_equal, getattr(state, name), getattr(before, name))
  assert (int(state.step), int(state.examples), int(state.guard.skipped)) == (2, 16, 1)

  # The next steps are as if the bad batch had never been.
  state, health = step(state, batch(2))
  other, step = started(accumulate=accumulate)
  for i in (0, 2):
    other, _ = step(other, batch(i))
  jax.tree.map(np.testing.assert_array_equal, state.params, other.params)
  jax.tree.map(np.testing.assert_array_equal, state.emas, other.emas)
  assert (int(health.skipped_in_a_row), int(state.guard.skipped)) == (0, 1)


def test_averages_count_the_examples_of_skipped_steps():
  # w counts the updates. An average of std .05 has its profile although some steps were skipped, as if
  # it had been moved once in their place.
  power = float(ema.power_from_std(0.05))
  share = lambda step, examples, added: {'mean': ema.power_rate(power, examples, added)}
  def loss(keys, params, batch, histogram):
    losses = -params['w'] * batch['x']
    return losses, {'error': losses}
  mesh, sgd = sharding.device_mesh(jax.devices()[:1]), optax.sgd(1.0)
  state = train_state.create(lambda key: {'w': jnp.float32(0)}, sgd, ['mean'], 0, mesh)
  step = train_step.make_step(train_step.gradient_of(loss), sgd, share, mesh, skip=nonfinite.counted)
  weights, at = [], []
  for i in range(60):
    bad = 40 <= i < 52
    given = {'x': np.full(8, np.nan if bad else 1, np.float32), 'index': np.arange(8, dtype=np.uint32)}
    state, _ = step(state, given)
    if not bad:
      weights, at = weights + [float(state.params['w'])], at + [i + 1]
  edges = np.array([0, *at]) ** (power + 1) / 60 ** (power + 1)
  np.testing.assert_allclose(float(state.emas['mean']['w']), np.diff(edges) @ weights, rtol=1e-5)


def test_nan_in_one_leaf_of_the_gradient_skips_the_step():
  @jax.custom_vjp
  def broken(w):
    return w
  broken.defvjp(lambda w: (w, None), lambda _, g: (g.at[1].set(jnp.nan),))
  def loss(keys, params, batch, histogram):
    losses = ((batch['x'] @ broken(params['w']))[:, 0] - batch['y']) ** 2
    return losses, {'error': losses}
  state, step = started(loss=loss)
  before = host(state)
  state, health = step(state, batch(0))
  assert np.isfinite(health.loss) and np.isnan(health.grad_norm), 'the gradient alone must be NaN'
  jax.tree.map(np.testing.assert_array_equal, state.params, before.params)


def test_skipping_does_not_change_finite_steps():
  (a, step_a), (b, step_b) = started(skip=True), started(skip=False)
  for i in range(3):
    a, health_a = step_a(a, batch(i))
    b, health_b = step_b(b, batch(i))
  jax.tree.map(np.testing.assert_array_equal, (a.params, a.emas), (b.params, b.emas))
  np.testing.assert_array_equal(np.asarray(health_a), np.asarray(health_b))


def test_the_loss_scale_keeps_float16_gradients_from_underflow():
  # An error of size 1 leaves 2 size/8 as what flows back, below 2^-24 for size 2^-24.
  small = regression(jnp.float16, 2.0**-24)
  grown = {}
  for scale in (1.0, 2.0**16):
    state, step = started(scale=scale, loss=small)
    _, health = step(state, batch(0))
    grown[scale] = float(health.grad_norm)
  state, step = started(loss=regression(jnp.float32, 2.0**-24))
  _, health = step(state, batch(0))
  np.testing.assert_allclose(grown[2.0**16], float(health.grad_norm), rtol=2e-3)
  assert grown[1.0] < 0.9 * float(health.grad_norm), f'nothing underflows without a scale: {grown}'


def test_the_loss_scale_is_halved_until_the_gradient_is_finite():
  state, step = started(scale=2.0**20, loss=regression(jnp.float16))
  first = host(state.params)
  rows = []
  while not rows or rows[-1]:
    jax.tree.map(np.testing.assert_array_equal, state.params, first)
    state, health = step(state, batch(0))
    rows.append(int(health.skipped_in_a_row))
    assert len(rows) < 20, f'no scale was small enough: {float(state.guard.scale)}'
  assert len(rows) > 1 and rows == [*range(1, len(rows)), 0]
  assert float(state.guard.scale) == 2.0 ** (21 - len(rows))
  assert abs(np.asarray(state.params['w']) - first['w']).max() > 0.01, 'no step was made'


def test_the_loss_scale_grows_after_many_finite_steps_and_has_bounds():
  good, bad = jnp.array(True), jnp.array(False)
  held = nonfinite.start(2.0)
  many = nonfinite.GROWTH_INTERVAL
  for finite, steady, scale in ((good, many - 2, 2.0), (good, many - 1, 4.0), (bad, 5, 1.0)):
    found = nonfinite.rescaled(held.replace(fin_steps=jnp.int32(steady)), finite)
    assert float(found.scale) == scale
    assert int(found.fin_steps) == (steady + 1) % nonfinite.GROWTH_INTERVAL * int(finite)
  assert float(nonfinite.rescaled(nonfinite.start(1.0), bad).scale) == 1
  top = nonfinite.start(nonfinite.LARGEST).replace(fin_steps=jnp.int32(nonfinite.GROWTH_INTERVAL))
  assert float(nonfinite.rescaled(top, good).scale) == nonfinite.LARGEST


def toy(most):
  config = load('toy').get_config()
  config.train.update(dict(batch=64, num_examples=768, log_examples=256, sample_examples=10**6,
                           checkpoint_examples=256, max_skipped=most))
  config.model.update(dict(width=16, depth=1))
  return config.lock()


def poisoned(monkeypatch, at):
  """Puts NaN into the batches with these numbers."""
  place, calls = sharding.place_batch, []
  def broken(batch, mesh):
    calls.append(1)
    if len(calls) - 1 in at:
      batch = batch | {'x': np.full_like(batch['x'], np.nan)}
    return place(batch, mesh)
  monkeypatch.setattr(sharding, 'place_batch', broken)


def test_a_run_reports_and_counts_skipped_steps(
    tmp_path, monkeypatch, capsys):
  poisoned(monkeypatch, {2, 6, 7})
  state = train.train(run_of(toy(2), tmp_path / 'run'))
  said = capsys.readouterr().out
  assert said.count('skipped, ') == 3, said
  assert 'step 8: loss nan' in said and '2 in a row of at most 2' in said
  assert (int(state.step), int(state.guard.skipped)) == (12, 3)
  rows = [json.loads(line) for line in (tmp_path / 'run/metrics.jsonl').read_text().splitlines()]
  assert [row['skipped'] for row in rows] == [1, 3, 3] and np.isfinite([r['loss'] for r in rows]).all()


@pytest.mark.long
def test_too_many_skipped_steps_end_the_run_with_a_finite_checkpoint(
    tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    poisoned(patch, {5, 6, 7})
    with pytest.raises(FloatingPointError, match=r'step 8: loss nan.*config.train.max_skipped=2'):
      train.train(run_of(toy(2), tmp_path / 'run'))
  # max_skipped may change when a run resumes. It resumes from step 4.
  state = train.train(run_of(toy(3), tmp_path / 'run'))
  whole = train.train(run_of(toy(2), tmp_path / 'whole'))
  jax.tree.map(np.testing.assert_array_equal, state.params, whole.params)


def test_float16_needs_max_skipped():
  config = load('digits').get_config()
  config.model.dtype = 'float16'
  with rejected('model.dtype', 'float16', 'max_skipped'):
    recipes.recipe(config)
  config.train.max_skipped = 20
  assert recipes.recipe(config).objective.scale == 2.0**16


@pytest.mark.long
def test_float16_and_float32_agree_on_the_gradient():
  mesh, found = sharding.device_mesh(jax.devices()[:1]), {}
  rng = np.random.default_rng(0)
  given = {'x': rng.normal(size=(64, 2)).astype(np.float32), 'label': np.zeros(64, np.int32),
           'index': np.arange(64, dtype=np.uint32)}
  for dtype in ('float32', 'float16'):
    config = toy(20).copy_and_resolve_references()
    with config.unlocked():
      config.model.update(dict(dtype=dtype, final_scale=1.0))
    recipe = recipes.recipe(config)
    state = train_state.create(recipe.model.init, recipe.optimizer, [], 0, mesh,
                               scale=recipe.objective.scale)
    gradient = train_step.gradient_of(recipe.objective.loss, scaled=recipe.objective.scale != 1)
    step = train_step.make_step(gradient, recipe.optimizer, lambda *a: {}, mesh,
                                skip=nonfinite.rescaled)
    row = 1
    while row:
      state, health = step(state, given)
      row = int(health.skipped_in_a_row)
    found[dtype] = np.asarray(health)
  np.testing.assert_allclose(found['float16'], found['float32'], rtol=5e-3)


def test_nan_is_not_written_to_the_log(tmp_path):
  writer = logging.Writer(tmp_path)
  writer.scalars(3, {'loss': float('nan'), 'skipped': 2})
  writer.close()
  assert (tmp_path / 'metrics.jsonl').read_text() == '{"step": 3, "skipped": 2}\n', 'JSON has no NaN'


def test_a_full_disk_does_not_block_tensorboard(tmp_path, capsys, monkeypatch):
  writer, write = logging.Writer(tmp_path), event_file_writer.EventsWriter.write_event

  def full(*given):
    raise OSError(28, 'No space left on device')
  monkeypatch.setattr(event_file_writer.EventsWriter, 'write_event', full)
  for step in range(30):
    writer.scalars(step, {'loss': 1.0, 'error': 2.0})
  writer.picture(30, 'samples', np.zeros((8, 8, 3), np.uint8))
  assert capsys.readouterr().out.count('TensorBoard misses events') == 1
  assert len((tmp_path / 'metrics.jsonl').read_text().splitlines()) == 30
  monkeypatch.setattr(event_file_writer.EventsWriter, 'write_event', write)
  before = {path: path.stat().st_size for path in tmp_path.glob('tensorboard/*')}
  writer.scalars(31, {'loss': 1.0})
  writer.close()
  after = {path: path.stat().st_size for path in tmp_path.glob('tensorboard/*')}
  assert any(size > before.get(path, 0) for path, size in after.items()), 'nothing more was written'


def test_sessions_that_start_in_one_second_write_files_of_their_own(tmp_path, monkeypatch):
  monkeypatch.setattr(event_file_writer.time, 'time', lambda: 1e9)
  for step in (0, 3):
    writer = logging.Writer(tmp_path, step=step)
    writer.scalars(step + 1, {'loss': 0.5})
    writer.close()
  assert logs.board(tmp_path) == {(1, 'loss'): 0.5, (4, 'loss'): 0.5}


def test_tensorboard_reads_what_was_logged(tmp_path):
  writer = logging.Writer(tmp_path, step=4)
  writer.scalars(5, {'loss': 0.25})
  writer.picture(6, 'samples', np.zeros((8, 8, 3), np.uint8))
  writer.close()
  data, found = next(tmp_path.glob('tensorboard/events.*')).read_bytes(), []
  while data:
    size = int.from_bytes(data[:8], 'little')
    found.append(event_pb2.Event.FromString(data[12:12 + size]))
    data = data[16 + size:]
  assert [event.step for event in found[1:]] == [5, 5, 6]
  # Events of older files from step 5 on do not count.
  assert found[1].session_log.status == event_pb2.SessionLog.START
  assert (found[2].summary.value[0].tag, found[2].summary.value[0].simple_value) == ('loss', 0.25)
  assert found[3].summary.value[0].image.width == 8


@pytest.mark.parametrize('line', ['{"step": "x"}', 'null', '{"step": 2, "lo', '\xff'])
def test_unreadable_lines_are_dropped_on_resume(tmp_path, line):
  (tmp_path / 'metrics.jsonl').write_bytes(f'{{"step": 1}}\n{line}\n'.encode('latin-1'))
  logging.Writer(tmp_path, step=3).close()
  assert (tmp_path / 'metrics.jsonl').read_text() == '{"step": 1}\n'
