"""The experiment's own arithmetic: rows, stopping read off a path, sets that are no digits, tables."""

import json

from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np
import pytest

from eqflow import build, descent, samplers
from experiments.equilibrium_matching import abilities, descents, figures, models, results, tables

Z = np.random.default_rng(0).standard_normal((9, 4)) * np.tile([[1], [3], [9]], (3, 1))


@pytest.mark.parametrize('data, row', [('digits', 'eqm_time'), ('fashion_mnist', 'linear')])
def test_rows_are_configs_that_run(data, row):
  config = models.config_of(data, row, 2)
  build.recipe(config)
  assert config.seed == 2 and models.steps_of(config) == {'digits': 3_000}.get(data, 4_000)


def test_rows_differ_in_what_their_names_say():
  decay = lambda row: models.config_of('digits', row, 0).output.decay.to_dict()
  assert decay('gain_8') == dict(name='truncated', start=0.8, gain=8.0)
  assert decay('height_1.4') == dict(name='piecewise', start=0.8, height=1.4, gain=4.0)
  assert decay('linear') == dict(name='linear', gain=4.0)
  assert models.config_of('digits', 'eqm_time', 0).model.label_noise.name == 'time'
  assert models.config_of('digits', 'heldout', 0).data.split == 'train'
  # z moves by step_size gain (eps - x) c: the products are alike, but for a linear decay's.
  assert [descents.step_of(row) for row in ('eqm', 'gain_1', 'gain_8', 'blind_flow', 'linear')] == (
      pytest.approx([0.003, 0.012, 0.0015, 0.012, 0.006]))


def test_stopping_read_off_a_path_is_descend_until():
  field = Partial(_field)
  z = jnp.asarray(Z, jnp.float32)
  solver = descent.gradient_descent(0.1)
  states = np.asarray(samplers.sample_path(solver, field, z, np.zeros(41, np.float32)))
  at = descents.first_below(descents.norms_of(states, 0.1), 1.0)
  end, steps, _ = descent.descend_until(solver, field, z, max_steps=40, threshold=1.0)
  np.testing.assert_allclose(descents.picked(states, at), end, rtol=1e-6)
  np.testing.assert_array_equal(np.minimum(at + 1, 40), steps)
  assert len(set(steps.tolist())) > 3


def _field(z, t):
  return z


def test_sets_that_are_no_digits_are_what_they_are_called():
  inside = np.random.default_rng(0).uniform(-1, 1, (6, 8, 8, 1)).astype(np.float32)
  inside[..., -1, :] = -1
  sets = _outside(inside)
  assert all(x.shape == inside.shape for x in sets.values())
  np.testing.assert_array_equal(np.sort(sets['shuffled'].reshape(6, -1)),
                                np.sort(inside.reshape(6, -1)))
  assert (sets['shuffled'] != inside).any((1, 2, 3)).all()
  assert np.ptp(sets['constants'].reshape(6, -1), axis=1).max() == 0
  np.testing.assert_array_equal(sets['turned by 90°'][0, :, :, 0], np.rot90(inside[0, :, :, 0]))
  np.testing.assert_array_equal(sets['shifted by a pixel'][:, :, 1:], inside[:, :, :-1])
  np.testing.assert_array_equal(sets['flipped left to right'][:, :, 0], inside[:, :, 7])


def _outside(inside):
  blank = np.full(inside.shape, -1.0)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(abilities, 'clothes', lambda n: blank[:n])
    return abilities.outside(inside, 0)


def test_pictures_survive_their_packing():
  x = np.linspace(-1.2, 1.2, 2 * 8 * 8).reshape(2, 8, 8, 1)
  again = abilities.unpack(json.loads(json.dumps(abilities.pack(x))))
  np.testing.assert_allclose(again, np.clip(x, -1, 1), atol=1 / 255)


def test_numbers_are_stored_whole_and_read_by_seed(tmp_path, monkeypatch):
  monkeypatch.setattr(results, 'FOLDER', tmp_path)
  for seed in (1, 0):
    results.write(results.path('digits', 'm', 'eqm', seed),
                  {'a': jnp.float32(seed) / 3, 5: np.arange(2), 'none': None})
  first, second = results.read('digits', 'm', 'eqm')
  assert first == {'a': 0.0, '5': [0, 1], 'none': None} and second['a'] == 0.33333
  assert results.read('digits', 'm', 'eq') == []
  assert [path.suffix for path in sorted(tmp_path.rglob('*_?.*'))] == ['.json', '.json']


def test_spread_is_the_deviation_of_a_sample():
  assert tables.spread([0.1, 0.2, 0.3, None]) == '0.200 ± 0.100'
  assert tables.spread([0.25]) == '0.250' and tables.spread([]) == ''


def test_the_readme_shows_what_is_stored():
  text = figures.README.read_text()
  assert tables.filled(text) == text, 'run python -m experiments.equilibrium_matching.figures'
