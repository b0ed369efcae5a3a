"""The experiment's rows, its arithmetic, and that tables and figures read what is measured."""

import functools
import json
import types

from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np
import pytest

from eqflow import descent, energies
from eqflow.config import recipes
from experiments.equilibrium_matching import __main__ as command
from experiments.equilibrium_matching import (
  abilities,
  descents,
  figures,
  flows,
  measure,
  models,
  results,
  tables,
)

Z = np.random.default_rng(0).standard_normal((9, 4)) * np.tile([[1], [3], [9]], (3, 1))


@pytest.mark.parametrize('data, row', [('digits', 'eqm_time'), ('fashion_mnist', 'linear')])
def test_rows_are_valid_configs(data, row):
  config = models.config_of(data, row, 2)
  recipes.recipe(config)
  assert config.seed == 2 and models.steps_of(config) == {'digits': 3_000}.get(data, 2_000)


def test_rows_change_the_config_as_their_names_say():
  decay = lambda row: models.config_of('digits', row, 0).output.decay.to_dict()
  assert decay('gain_8') == dict(name='truncated', start=0.8, gain=8.0)
  assert decay('height_1.4') == dict(name='piecewise', start=0.8, height=1.4, gain=4.0)
  assert decay('linear') == dict(name='linear', gain=4.0)
  assert models.config_of('digits', 'eqm_time', 0).model.c_noise.name == 'time'
  assert models.config_of('digits', 'heldout', 0).data.split == 'train'
  # A step moves z by step_size gain (eps - x) c: the products agree, except for a linear decay.
  assert [descents.step_of(row) for row in ('eqm', 'gain_1', 'gain_8', 'blind_flow', 'linear')] == (
      pytest.approx([0.003, 0.012, 0.0015, 0.012, 0.006]))


def test_stopping_read_from_a_path_agrees_with_descend_until():
  field = Partial(_field)
  z = jnp.asarray(Z, jnp.float32)
  solver = descent.gradient_descent(0.1)
  states = np.asarray(descent.descend_path(solver, field, z, num_steps=40))
  at = descents.first_below(descents.norms_of(states, 0.1), 1.0)
  end, steps, _ = descent.descend_until(solver, field, z, max_steps=40, threshold=1.0)
  np.testing.assert_allclose(descents.picked(states, at), end, rtol=1e-6)
  np.testing.assert_array_equal(np.minimum(at + 1, 40), steps)
  assert len(set(steps.tolist())) > 3


def _field(z, t):
  return z


def test_out_of_distribution_sets_match_their_names():
  inside = np.random.default_rng(0).uniform(-1, 1, (6, 8, 8, 1)).astype(np.float32)
  inside[..., -1, :] = -1
  sets = _outside(inside)
  assert all(x.shape == inside.shape for x in sets.values())
  np.testing.assert_array_equal(np.sort(sets['shuffled'].reshape(6, -1)),
                                np.sort(inside.reshape(6, -1)))
  assert (sets['shuffled'] != inside).any((1, 2, 3)).all()
  assert np.ptp(sets['constants'].reshape(6, -1), axis=1).max() == 0
  np.testing.assert_array_equal(sets['rotated by 90°'][0, :, :, 0], np.rot90(inside[0, :, :, 0]))
  np.testing.assert_array_equal(sets['shifted by a pixel'][:, :, 1:], inside[:, :, :-1])
  np.testing.assert_array_equal(sets['flipped left to right'][:, :, 0], inside[:, :, 7])


def _outside(inside):
  blank = np.full(inside.shape, -1.0)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(abilities, 'clothes', lambda n: blank[:n])
    return abilities.outside(inside, 0)


def test_unpack_inverts_pack():
  x = np.linspace(-1.2, 1.2, 2 * 8 * 8).reshape(2, 8, 8, 1)
  again = abilities.unpack(json.loads(json.dumps(abilities.pack(x))))
  np.testing.assert_allclose(again, np.clip(x, -1, 1), atol=1 / 255)


def test_results_are_written_and_read_in_order_of_seeds(tmp_path, monkeypatch):
  monkeypatch.setattr(results, 'FOLDER', tmp_path)
  for seed in (1, 0):
    results.write(results.path('digits', 'm', 'eqm', seed),
                  {'a': jnp.float32(seed) / 3, 5: np.arange(2), 'none': None})
  first, second = results.read('digits', 'm', 'eqm')
  assert first == {'a': 0.0, '5': [0, 1], 'none': None} and second['a'] == 0.33333
  assert results.read('digits', 'm', 'eq') == []
  assert [path.suffix for path in sorted(tmp_path.rglob('*_?.*'))] == ['.json', '.json']


def test_spread_is_the_sample_standard_deviation():
  assert tables.spread([0.1, 0.2, 0.3, None]) == '0.200 ± 0.100'
  assert tables.spread([0.25]) == '0.250' and tables.spread([]) == ''


def test_readme_shows_the_stored_results():
  text = figures.README.read_text()
  assert tables.filled(text) == text, 'run python -m experiments.equilibrium_matching.figures'


# measurement: (the rows needed, the tables and figures that read them).
READERS = {
    'adaptive':   (['eqm'], [tables.adaptive, figures.adaptive]),
    'composed':   (['eqm', 'dot'], [tables.composed, tables.composed_energies, figures.pictures]),
    'pictured':   (['eqm', 'flow'], [figures.pictures]),
    'noisy':      (['eqm', 'flow', 'blind_flow'],
                   [tables.noisy, tables.noisy_thresholds, tables.noisy_fields, figures.noisy]),
    'detected':   (['heldout'], [tables.detected, tables.detected_fields]),
    'ode':        (['eqm_time'], [tables.models_table, tables.two_by_two, tables.solvers]),
    'descended':  (['eqm', 'dot'], [tables.models_table, tables.decays, tables.energies,
                                    tables.two_by_two, tables.descents, figures.decays]),
    'stochastic': (['flow'], [tables.models_table, tables.solvers]),
    'swept':      (['eqm'], [tables.models_table, tables.descents]),
    'step_sizes': (['flow'], [figures.evaluations]),
    'timed':      (['eqm'], [tables.timed]),
    'optimized':  (['eqm'], [tables.descents]),
}
COUNT, RECORDS = 12, 30


@pytest.fixture
def small(monkeypatch, tmp_path):
  """row -> its model on a few digits, with a field in closed form."""
  x, label = measure.records('digits')
  centre = jnp.asarray([x[label == y].mean(0) for y in range(10)])
  few = x[:RECORDS], label[:RECORDS]

  def load(data, row, seed, runs):
    network, energy = Partial(_toward, centre=centre), None
    if row == 'dot':
      energy = energies.dot(network)
      network = energies.energy_gradient(energy)
    architecture = types.SimpleNamespace(network=lambda params: network,
                                         energy=energy and (lambda params: energy))
    return models.config_of(data, row, seed), types.SimpleNamespace(model=architecture), {}

  monkeypatch.setattr(models, 'load', load)
  monkeypatch.setattr(measure, 'COUNT', {'digits': COUNT})
  monkeypatch.setattr(measure, 'BATCH', {'digits': COUNT // 2})
  monkeypatch.setattr(measure, 'records', lambda data: few)
  monkeypatch.setattr(measure, '_moments', functools.cache(measure._moments.__wrapped__))
  monkeypatch.setattr(abilities, 'pipeline', types.SimpleNamespace(arrays=lambda source: few))
  monkeypatch.setattr(abilities, 'clothes', lambda n: np.full((n, 8, 8, 1), -1.0))
  monkeypatch.setattr(results, 'FOLDER', tmp_path)
  return lambda row: measure.load.__wrapped__('digits', row, 0, tmp_path)


def _toward(z, t, label, *, centre):
  return 2 * (z - centre[label])


def test_noisy_agrees_with_descend_until_at_the_gain_of_the_field(small):
  model = small('gain_1')
  clean = np.resize(measure.records('digits')[0], model.noise.shape)
  found = flows.noisy(model, 'gain_1')[0.5]['threshold']
  # Gain 1: steps are four times as long, norms a quarter.
  direct = descents.stopped(model, 3.5 / 4, ((clean + model.noise) / 2).astype(np.float32), size=0.012)
  assert found['evaluations'] == pytest.approx(direct['evaluations'], abs=1e-6)
  assert found['distance'] == pytest.approx(direct['distance'], rel=1e-4)


def test_noisy_fields_averages_ratios_over_seeds(monkeypatch):
  stored = {'gain_1': [{'0.5': {'threshold': {'distance': distance}}} for distance in (0.2, 0.9)],
            'flow': [{'0.5': {'at_level': at_level}} for at_level in (0.1, 0.3)]}
  monkeypatch.setattr(results, 'read', lambda data, name, row: stored.get(row, []))
  # The mean of ratios is 2.5; the ratio of means would be 2.75.
  assert '0.550 ± 0.495' in tables.noisy_fields('digits')
  assert '2.500 ± 0.707' in tables.noisy_fields('digits')


def test_every_measurement_has_a_table_or_figure():
  assert list(READERS) == list(command.MEASUREMENTS)
  assert {read for _, readers in READERS.values() for read in readers} == {
      *tables.TABLES.values(), *(draw for *_, draw in figures.FIGURES.values()), figures.pictures}


SLOW = 'stochastic', 'timed'


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=pytest.mark.long if name in SLOW else ()) for name in READERS])
def test_tables_and_figures_read_the_measurements(name, small, monkeypatch):
  function, rows = command.MEASUREMENTS[name]
  if name == 'timed':
    # 10,000 samples would take too many small batches.
    monkeypatch.setattr(measure, 'BATCH', {'digits': 2_000})
  needed, readers = READERS[name]
  assert set(needed) <= set(rows)
  for row in needed:
    found = function(small(row), row)
    results.write(results.path('digits', name, row, 0), found)
    stored, = results.read('digits', name, row)
    numbers = list(_leaves(stored))
    assert len(numbers) > 3 and all(np.isfinite(numbers)), f'{row}: {stored}'
  for read in readers:
    made = read('digits')
    if isinstance(made, str):
      # A heading, a rule, and at least one row.
      assert made.count('\n') >= 2 and 'nan' not in made, f'{read.__name__}:\n{made}'
    elif isinstance(made, dict):
      assert made and all(picture.size for picture in made.values())
    else:
      # One of the panels is not empty.
      assert any(axis.lines or axis.patches for axis in made.axes)
      figures.plt.close(made)


def _leaves(tree):
  """The numbers in a stored result; None, for a distance that is not finite, becomes NaN."""
  for value in tree.values() if isinstance(tree, dict) else tree:
    if isinstance(value, (dict, list)):
      yield from _leaves(value)
    elif not isinstance(value, str):
      yield np.nan if value is None else value
