"""What fails after a training is found before its first step."""

from ml_collections import ConfigDict
import pytest

from eqflow.evaluation import report
from eqflow.runs import rehearsal
from eqflow.runs.run import run_of
from tests import config_file
from tests.faults import mutations
from tests.rejected import rejected


def points(**changed):
  config = config_file('toy').get_config('eqm')
  config.model.update(dict(width=8, depth=1))
  config.sample.update(dict(num_steps=5) | changed)
  return config.lock()


def test_a_solver_that_cannot_follow_an_exact_field_is_rejected(tmp_path):
  rehearsal.rehearse(run_of(points(), tmp_path))
  steep = ConfigDict(dict(name='gradient_descent', step_size=1e30))
  with rejected('sample.solver', 1e30, 'not finite'):
    rehearsal.rehearse(run_of(points(solver=steep), tmp_path))


def test_records_that_cannot_be_evaluated_are_rejected(tmp_path, monkeypatch):
  def fails(x):
    raise ValueError(f'{x.shape[1]} numbers cannot be pooled')
  monkeypatch.setattr(report, 'summary', fails)
  with rejected('data.shape', (2,), '2 numbers cannot be pooled'):
    rehearsal.rehearse(run_of(points(), tmp_path))


@pytest.mark.long
@pytest.mark.parametrize('name,variant', [
    (name, variant) for name in ('digits', 'toy', 'fashion_mnist')
    for variant in mutations.CONFIGS[name] or config_file(name).VARIANTS])
def test_every_config_passes(tmp_path, name, variant):
  rehearsal.rehearse(run_of(config_file(name).get_config(variant), tmp_path))
