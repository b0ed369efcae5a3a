"""Sizes beyond the machine are rejected by arithmetic, before they are allocated."""

import contextlib
import shutil
import types

import jax
import pytest

from eqflow.planning import machine
from eqflow.runs import blueprint, room
from eqflow.runs.run import run_of
from tests import config_file
from tests.rejected import rejected


@pytest.fixture
def small(monkeypatch):
  """A machine with a million bytes."""
  monkeypatch.setattr(machine, 'host_memory', lambda: 10**6)
  monkeypatch.setattr(machine, 'device_memory', lambda mesh: 10**6)
  monkeypatch.setattr(shutil, 'disk_usage', lambda folder: types.SimpleNamespace(free=10**6))


def run(tmp_path, **changed):
  config = config_file('toy').get_config()
  config.data.update(dict(shape=(2,)))
  config.train.update(dict(batch=8, checkpoint_examples=8) | changed.pop('train', {}))
  config.model.update(dict(width=8, depth=1) | changed.pop('model', {}))
  config.sample.update(dict(batch=8, num_steps=2) | changed.pop('sample', {}))
  config.evaluate.num_samples = changed.pop('count', 8)
  config.ema.update(changed)
  return run_of(config, tmp_path)


BATCH = 12_504 * jax.device_count()   # data and noise
# A record of two float32 numbers has 8 bytes, and 32 of its key, label and norm.
@pytest.mark.parametrize('key,value,changed', [
    ('train.batch', BATCH, dict(train=dict(batch=BATCH))),
    ('evaluate.num_samples', 12_504, dict(count=12_504))])
def test_a_count_beyond_memory_is_rejected(tmp_path, small, key, value, changed):
  room.check_training(run(tmp_path))
  with rejected(key, value, '0.001 GB', 'or fewer'):
    room.check_training(run(tmp_path, **changed))


def test_a_flag_beyond_memory_is_rejected(tmp_path, small):
  room.check_samples(run(tmp_path), 12_000, '--num_samples')
  with pytest.raises(ValueError, match='--num_samples=1000000000 needs at least 80 GB'):
    room.check_samples(run(tmp_path), 10**9, '--num_samples')


@pytest.mark.parametrize('changed', [dict(model=dict(width=400)), dict(decays=(0.9,) * 1000)])
def test_a_state_beyond_memory_is_rejected(tmp_path, small, changed):
  decays = tuple(0.9 + i * 1e-6 for i in range(len(changed.get('decays', ()))))
  found = run(tmp_path, **changed | (dict(decays=(0.999, *decays)) if decays else {}))
  room.check_state(blueprint.first_state(
      run(tmp_path).config, run(tmp_path).recipe, found.mesh, abstract=True), found.mesh)
  state = blueprint.first_state(found.config, found.recipe, found.mesh, abstract=True)
  with rejected('model', 'optimizer' if not decays else 'averages'):
    room.check_state(state, found.mesh)


@pytest.mark.parametrize('keep,examples,fits', [
    (10_000, 80_000, False), (10_000, 80, True), (2, 80_000, True)])
def test_checkpoints_beyond_the_disk_are_rejected(tmp_path, small, keep, examples, fits):
  found = run(tmp_path, train=dict(keep_checkpoints=keep, num_examples=examples))
  state = blueprint.first_state(found.config, found.recipe, found.mesh, abstract=True)
  room.check_saves(found.config, tmp_path, state, 10_000)   # They exist.
  with contextlib.nullcontext() if fits else pytest.raises(ValueError, match='checkpoints and snap'):
    room.check_saves(found.config, tmp_path, state, 0)
