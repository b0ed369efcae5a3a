"""Inputs that are partly noise become data; what does not fit is rejected."""

from jax import numpy as jnp
import numpy as np
from PIL import Image
import pytest

from eqflow.commands.denoise import denoise
from eqflow.runs import generate
from eqflow.runs.run import run_of
from tests.commands.arrays import loaded, noisy, saved
from tests.untrained import SHAPE

pytestmark = pytest.mark.usefixtures('restored')


def test_an_input_is_descended_from_itself(eqm, tmp_path):
  x, label = noisy(4), np.array([3, 1, 4, 1])
  path = saved(tmp_path / 'x.npz', samples=x, labels=label)
  denoise(run_of(eqm.config, eqm.workdir), inputs=path, seed=1)
  found, z = loaded(eqm.workdir / 'denoised-seed1.npz'), x
  for _ in range(4):
    z = z - 0.003 * np.asarray(eqm.predict(jnp.asarray(z), jnp.zeros(4), jnp.asarray(label, jnp.int32)))
  np.testing.assert_allclose(found['samples'], z, atol=1e-5)
  assert abs(z - x).max() > 1e-3, 'the model moves nothing'
  np.testing.assert_array_equal(found['inputs'], x)
  np.testing.assert_array_equal(found['started'], x)
  np.testing.assert_array_equal(found['labels'], label)
  with Image.open(eqm.workdir / 'denoised-seed1.png') as picture:
    # Under a title, with captions, and the names of the rows to the left.
    assert picture.height == 15 + 2 * (15 + 4 + 48) + 4, 'inputs above what became of them'
    assert 4 * 52 + 4 < picture.width < 6 * 52, 'four inputs'


def test_pure_noise_becomes_the_samples_of_the_seed(eqm, tmp_path, capsys):
  path = saved(tmp_path / 'x.npz', x=np.full((9, *SHAPE), 255, np.uint8))
  denoise(run_of(eqm.config, eqm.workdir), inputs=path, seed=5, noise=1.0, labels=['7'])
  found = loaded(eqm.workdir / 'denoised-seed5.npz')
  want, evaluations, _ = generate.samples(eqm.recipe.sampling, [eqm.model], np.full(9, 7), seed=5,
                                          batch=8)
  np.testing.assert_allclose(found['samples'], want, atol=1e-5)
  np.testing.assert_array_equal(found['evaluations'], evaluations)
  np.testing.assert_array_equal(found['inputs'], 1)
  denoise(run_of(eqm.config, eqm.workdir), inputs=path, seed=5, noise=0.25, labels=['7'])
  half = loaded(eqm.workdir / 'denoised-seed5.npz')['started']
  np.testing.assert_allclose(half, 0.75 + 0.25 * found['started'], atol=1e-6)
  assert 'mixed with noise at t=0.25, denoised' in capsys.readouterr().out


def test_descents_that_do_not_converge_are_counted(eqm, tmp_path, capsys):
  path = saved(tmp_path / 'x.npz', x=noisy(6), labels=np.arange(6))
  denoise(run_of(eqm.changed(threshold=1e6), eqm.workdir), inputs=path, seed=2)
  found = loaded(eqm.workdir / 'denoised-seed2.npz')
  np.testing.assert_array_equal(found['samples'], found['inputs'])
  np.testing.assert_array_equal(found['evaluations'], 1)
  assert 'did not converge' not in capsys.readouterr().out
  norms = np.sort(found['norms'])
  changed = eqm.changed(threshold=float(norms[:2].mean()), num_steps=1)
  denoise(run_of(changed, eqm.workdir), inputs=path, seed=2)
  out = capsys.readouterr().out
  assert '5 of 6 did not converge: after config.sample.num_steps=1 steps' in out
  assert f'{np.median(norms[1:]):.3g}, above config.sample.threshold=' in out


def test_a_time_conditional_model_starts_at_the_time_of_the_noise(flow, tmp_path):
  x = noisy(4)
  path = saved(tmp_path / 'x.npz', x=x, labels=np.zeros(4, int))
  with pytest.raises(ValueError, match='--noise=t'):
    denoise(run_of(flow.config, flow.workdir), inputs=path, seed=0)
  denoise(run_of(flow.config, flow.workdir), inputs=path, seed=0, noise=0.6)
  found = loaded(flow.workdir / 'denoised-seed0.npz')
  z = found['started']
  # Euler's steps on the linear path, by hand: from 0.6 on through the grid of four steps.
  for t, s in [(0.6, 0.5), (0.5, 0.25), (0.25, 0.0)]:
    u = flow.predict(jnp.asarray(z), jnp.full(4, t), jnp.zeros(4, jnp.int32))
    z = z + (s - t) * np.asarray(u)
  np.testing.assert_allclose(found['samples'], z, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(found['evaluations'], 3)


@pytest.mark.parametrize('noise', [0.0, -0.5, 1.5, float('nan')])
def test_a_noise_outside_the_grid_is_rejected(eqm, tmp_path, noise):
  path = saved(tmp_path / 'x.npz', x=noisy(3), labels=np.zeros(3, int))
  with pytest.raises(ValueError, match='--noise=.* above 0 .* up to 1 '):
    denoise(run_of(eqm.config, eqm.workdir), inputs=path, seed=0, noise=noise)


def test_a_class_is_needed_without_a_null_class(eqm, place, tmp_path):
  path = saved(tmp_path / 'x.npz', x=noisy(3))
  with pytest.raises(ValueError, match="drop_label=0, config.sample.scale=1.*--labels.*'labels'"):
    denoise(run_of(eqm.config, eqm.workdir), inputs=path, seed=0)
  with pytest.raises(ValueError, match="'labels'.* 3 to 12"):
    denoise(run_of(eqm.config, eqm.workdir), inputs=saved(path, x=noisy(2), labels=np.array([3, 12])))
  with pytest.raises(ValueError, match='labels.* 3 to 4294967299'):
    denoise(run_of(eqm.config, eqm.workdir),
            inputs=saved(path, x=noisy(2), labels=np.array([3, 2**32 + 3])))


@pytest.mark.parametrize('labels', [np.array([0.0, 1.0]), np.arange(3), np.eye(10, dtype=int)[:2]])
def test_labels_that_are_not_classes_are_rejected(eqm, tmp_path, labels):
  config = eqm.config.copy_and_resolve_references().unlock()
  config.train.drop_label = 0.1
  path = saved(tmp_path / 'x.npz', x=noisy(2), labels=labels)
  with pytest.raises(ValueError, match=r"'labels'.*for each of 2 inputs"):
    denoise(run_of(config, eqm.workdir), inputs=path, seed=0)


def test_no_class_is_needed_at_scale_1(eqm, tmp_path):
  path = saved(tmp_path / 'x.npz', x=noisy(3))
  config = eqm.config.copy_and_resolve_references().unlock()
  config.train.drop_label = 0.1
  with config.ignore_type():
    config.sample.scale = (1.0,)
  denoise(run_of(config, eqm.workdir), inputs=path, seed=4)
  np.testing.assert_array_equal(loaded(eqm.workdir / 'denoised-seed4.npz')['labels'], 10)
  with config.ignore_type():
    config.sample.scale = (2.0,)
  with pytest.raises(ValueError, match='config.sample.scale.*--labels'):
    denoise(run_of(config, eqm.workdir), inputs=path, seed=4)
