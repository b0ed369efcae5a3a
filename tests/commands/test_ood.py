"""OOD scores of a time-independent field, and of the nearest record."""

import json

from jax import numpy as jnp
import numpy as np
import pytest

from eqflow.commands.ood import detect
from eqflow.runs import dataset
from eqflow.runs.run import run_of
from tests.commands.arrays import loaded, noisy, saved
from tests.untrained import tiny

pytestmark = pytest.mark.usefixtures('restored')


def test_scores_are_the_minimum_over_classes(eqm, tmp_path, capsys):
  x = 3 * noisy(4)
  rows = detect(run_of(eqm.config, eqm.workdir), inputs=saved(tmp_path / 'far.npz', x=x))
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
  assert 'all of them training records' in capsys.readouterr().out


def test_training_records_are_compared_with_other_records(eqm, tmp_path, capsys):
  config = eqm.config.copy_and_resolve_references().unlock()
  config.data.split, config.evaluate.num_samples = 'train', 1_797
  # Few evaluations: what is looked at needs no model.
  config.sample.solver = dict(name='adam', step_size=0.003)
  config.sample.batch = 600
  detect(run_of(config, eqm.workdir), inputs=saved(tmp_path / 'all.npz', x=noisy(3)))
  train, everything = dataset.training_records(config), dataset.training_records(eqm.config)
  found = loaded(eqm.workdir / 'ood-all.npz')['inside_nearest_record']
  space = train.reshape(len(train), -1).astype(np.float64)
  for i in (0, len(train) - 1, len(train), len(everything) - 1):
    far = np.square(space - everything[i].reshape(-1)).sum(1)
    np.testing.assert_allclose(found[i], np.min(far[far > 0]), rtol=1e-6)
  assert found.min() > 0
  assert f'{len(train):,} of them training records' in capsys.readouterr().out


@pytest.mark.parametrize('solver,drops', [
    (dict(name='adam', step_size=0.003), False),
    pytest.param(dict(name='momentum', step_size=0.003, momentum=0.9), False, marks=pytest.mark.long),
    pytest.param(dict(name='langevin', step_size=0.003, temperature=0.0), False,
                 marks=pytest.mark.long),
    (dict(name='nesterov', step_size=0.003, momentum=0.3), True)], ids=lambda each: str(each)[:20])
def test_only_steps_along_the_field_have_a_descent_drop(eqm, tmp_path, solver, drops):
  config = eqm.config.copy_and_resolve_references().unlock()
  config.sample.solver = solver
  rows = detect(run_of(config, eqm.workdir), inputs=saved(tmp_path / 'few.npz', x=noisy(3)))
  assert ('descent_drop' in rows) == drops


def test_a_field_with_time_or_not_small_at_data_is_rejected(flow, place, tmp_path):
  path = saved(tmp_path / 'x.npz', x=noisy(3))
  with pytest.raises(ValueError, match="c_noise.name='time'"):
    detect(run_of(flow.config, flow.workdir), inputs=path)
  config = tiny(place, 'blind_flow').copy_and_resolve_references().unlock()
  config.output.name = 'v'
  with pytest.raises(ValueError, match="output.name='v'"):
    detect(run_of(config, flow.workdir), inputs=path)
