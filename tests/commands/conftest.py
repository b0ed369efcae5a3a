"""Runs that are not trained, shared by the tests of a module."""

import pytest

from eqflow.config import recipes
from eqflow.runs import restore
from tests.untrained import Untrained, recipe_of


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  return tmp_path_factory.mktemp('runs')


@pytest.fixture(scope='module')
def eqm(place):
  return Untrained(place, 'eqm', 1)


@pytest.fixture(scope='module')
def flow(place):
  return Untrained(place, 'flow', 3, 'flow')


@pytest.fixture
def restored(eqm, flow, monkeypatch):
  """Each folder has its model instead of a checkpoint."""
  models = {run.workdir: run.model for run in (eqm, flow)}
  monkeypatch.setattr(recipes, 'recipe', recipe_of)
  monkeypatch.setattr(restore, 'restore', lambda run, **_: (7, models[run.workdir]))
