"""A checkpoint survives kills and damage: the newest that is undamaged is restored."""

import shutil

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from eqflow import files
from eqflow.training import checkpoint, checksums
from eqflow.training.nonfinite import start
from eqflow.training.train_state import TrainState
from tests.faults import paths


def state(step, size=400):
  """A state of a few leaves, different for each step."""
  random = np.random.default_rng(step)
  leaf = lambda *shape: jnp.asarray(random.normal(size=shape).astype(np.float32))
  params = {'a': {'weight': leaf(size, 3)}, 'b': leaf(7)}
  return TrainState(seed=jnp.uint32(1), step=jnp.int32(step), examples=jnp.uint32(8 * step),
                    params=params, opt_state=(jax.tree.map(jnp.zeros_like, params),),
                    emas={'0.999': params}, guard=start())


def written(folder, *steps, keep=None):
  with checkpoint.open_checkpoints(folder, keep=keep) as checkpoints:
    for step in steps:
      checkpoints.save(state(step))
  return folder / 'checkpoints'


def read(folder, **options):
  with checkpoint.open_checkpoints(folder, keep=None) as checkpoints:
    return checkpoints.restore(jax.tree.map(jnp.zeros_like, state(0)), **options)


def assert_is(found, step):
  assert int(found.step) == step
  jax.tree.map(np.testing.assert_array_equal, found, state(step))


def test_a_state_comes_back_bit_for_bit_and_the_newest_are_kept(tmp_path):
  folder = written(tmp_path, 1, 2, 3, 5, keep=2)
  assert sorted(path.name for path in folder.iterdir()) == ['3', '5']
  assert_is(read(tmp_path), 5)


@pytest.mark.parametrize('name', [
    each if each in ('lr=[0.003]', '*', 'C:\\x') else pytest.param(each, marks=pytest.mark.long)
    for each in paths.NAMES], ids=ascii)
def test_a_folder_may_have_any_name(tmp_path, name):
  # A pattern of this name would match the other folder too.
  written(tmp_path / 'x', 1)
  for folder in (tmp_path / name, tmp_path / name / 'run'):
    written(folder, 2)
    assert_is(read(folder), 2)


def _flip(path, random):
  data = bytearray(path.read_bytes())
  place = random.integers(8 * len(data))
  data[place // 8] ^= 1 << place % 8
  path.write_bytes(data)


DAMAGES = {
    'truncated': lambda path, random: path.write_bytes(path.read_bytes()[:-1]),
    'zeroed': lambda path, random: path.write_bytes(bytes(path.stat().st_size)),
    'one bit flipped': _flip,
    'deleted': lambda path, random: path.unlink(),
    'added to': lambda path, random: path.with_name('more').write_bytes(b'x'),
}


@pytest.mark.parametrize('kind', [
    pytest.param(kind, marks=[pytest.mark.long] * (kind in ('truncated', 'zeroed')))
    for kind in DAMAGES])
def test_damage_to_any_file_is_found_and_the_checkpoint_before_is_restored(tmp_path, kind, capsys):
  folder, random = written(tmp_path / 'whole', 1, 2), np.random.default_rng(0)
  names = sorted(path.relative_to(folder / '2') for path in (folder / '2').rglob('*') if path.is_file()
                 and (path.stat().st_size or kind in ('deleted', 'added to')))
  assert len(names) > 5
  for i, name in enumerate(names):
    shutil.copytree(tmp_path / 'whole', tmp_path / str(i))
    DAMAGES[kind](tmp_path / str(i) / 'checkpoints/2' / name, random)
    assert_is(read(tmp_path / str(i), repair=True), 1)
    said = capsys.readouterr().out
    assert 'checkpoints/2 is damaged' in said
    assert sorted(path.name for path in (tmp_path / str(i) / 'checkpoints').iterdir()) == [
        '1', '2.damaged'], 'a damaged checkpoint is renamed'


def test_files_exchanged_between_two_checkpoints_are_found(tmp_path):
  folder = written(tmp_path, 1, 2, 3)
  data = {step: next(path for path in sorted((folder / step / 'state').rglob('d/*')) if path.is_file())
          for step in '23'}
  a, b = data['2'].read_bytes(), data['3'].read_bytes()
  assert a != b
  data['2'].write_bytes(b)
  data['3'].write_bytes(a)
  assert_is(read(tmp_path), 1)


def test_exchanged_folders_are_rejected(tmp_path):
  folder = written(tmp_path, 1, 2)
  (folder / '1').rename(folder / 'x')
  (folder / '2').rename(folder / '1')
  (folder / 'x').rename(folder / '2')
  with pytest.raises(ValueError, match='checkpoints/2 holds step 1'):
    read(tmp_path)


def test_a_run_does_not_start_from_scratch_if_all_checkpoints_are_damaged(tmp_path):
  folder = written(tmp_path, 1, 2)
  for step in '12':
    (folder / step / checksums.NAME).unlink()
  for _ in range(2):
    with pytest.raises(ValueError, match=r'checkpoints .*1, 2'):
      read(tmp_path, repair=True)
  assert read(tmp_path / 'elsewhere') is None


def test_interrupted_saves_are_ignored_and_cleaned_up(tmp_path):
  folder = written(tmp_path, 1, 2)
  shutil.copytree(folder / '2', folder / '3.partial')
  shutil.copytree(folder / '1', folder / '0.deleted')
  (folder / '007').mkdir()
  assert_is(read(tmp_path), 2)
  written(tmp_path, 3)
  assert_is(read(tmp_path), 3)
  shutil.copytree(folder / '2', folder / '4.partial')
  assert_is(read(tmp_path, repair=True), 3)
  assert sorted(path.name for path in folder.iterdir()) == ['007', '1', '2', '3']


def test_hidden_files_are_no_damage_but_an_empty_manifest_is(tmp_path):
  folder = written(tmp_path, 1, 2)
  (folder / '2/state/.nfs0001').write_text('held open elsewhere')
  assert_is(read(tmp_path), 2)
  shutil.rmtree(folder / '2/state')
  (folder / '2/manifest.json').write_text('{}\n')
  assert_is(read(tmp_path), 1)


def test_a_checkpoint_of_another_run_is_rejected(tmp_path):
  for run, step in (('ours', 1), ('theirs', 2)):
    with checkpoint.open_checkpoints(tmp_path, keep=None, run=run) as checkpoints:
      checkpoints.save(state(step))
  with checkpoint.open_checkpoints(tmp_path, keep=None, run='ours') as checkpoints:
    with pytest.raises(ValueError, match="checkpoints/2 is of run 'theirs'.*'ours'"):
      checkpoints.restore(state(0), repair=True)
  assert_is(read(tmp_path), 2)
  shutil.rmtree(tmp_path / 'checkpoints/2')
  with checkpoint.open_checkpoints(tmp_path, keep=None, run='ours') as checkpoints:
    assert_is(checkpoints.restore(state(0)), 1)


@pytest.mark.parametrize('moment', ['damages', '_read'])
def test_reading_a_run_that_prunes_meanwhile_takes_the_newer_checkpoint(tmp_path, monkeypatch, moment):
  owner = checkpoint if moment == '_read' else checksums
  folder, function, seen = written(tmp_path, 1), getattr(owner, moment), []

  def pruned(path, *like):
    if not seen:
      seen.append(path)
      written(tmp_path, 2)
      shutil.rmtree(folder / '1')
    return function(path, *like)
  monkeypatch.setattr(owner, moment, pruned)
  assert_is(read(tmp_path), 2)
  assert seen == [folder / '1']


def test_the_state_of_another_network_is_rejected_and_nothing_renamed(tmp_path):
  folder = written(tmp_path, 1)
  with checkpoint.open_checkpoints(tmp_path, keep=None) as checkpoints:
    with pytest.raises(ValueError, match='checkpoints/1 has another structure'):
      checkpoints.restore(state(0, size=9), repair=True)
  assert (folder / '1').is_dir()


def test_a_failed_save_is_reported_at_the_next_check_and_can_be_repeated(
    tmp_path, monkeypatch):
  written(tmp_path, 1)
  with checkpoint.open_checkpoints(tmp_path, keep=1) as checkpoints:
    with monkeypatch.context() as patch:
      def full(path):
        raise OSError(28, 'No space left on device')
      patch.setattr(files, 'sync', full)
      checkpoints.save(state(2))
      with pytest.raises(OSError, match='No space left.* newest checkpoint is 1;'):
        checkpoints.wait()
    assert checkpoints.steps() == [1]
    checkpoints.check()
    checkpoints.save(state(2))
    checkpoints.wait()
    assert checkpoints.steps() == [2]
  assert_is(read(tmp_path), 2)


def test_a_save_that_cannot_start_is_reported_at_once_and_deletes_nothing(tmp_path):
  folder = written(tmp_path, 1)
  (folder / '2.partial').write_text('in the way')
  with checkpoint.open_checkpoints(tmp_path, keep=1) as checkpoints:
    with pytest.raises(OSError, match='newest checkpoint is 1;'):
      checkpoints.save(state(2))
    (folder / '2.partial').unlink()
    checkpoints.save(state(2))
  assert_is(read(tmp_path), 2)
