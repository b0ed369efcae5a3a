"""slide(): sliders in a notebook, the default picture elsewhere."""

import sys
import types

import pytest

from experiments import slides
from experiments.slides import slide


def test_slide_draws_the_defaults_outside_notebooks():
  drawn = []

  def draw(churn=0.5, *, std=2):
    drawn.append((churn, std))

  slide(draw, churn=[0.0, 0.5], std=(1, 2, 3))
  assert drawn == [(0.5, 2)]


def test_slide_starts_at_the_defaults_and_raises_failures(monkeypatch):
  def interact(function, churn):
    try:  # As ipywidgets: draws the first values and does not raise.
      function(churn=churn['value'])
    except Exception:
      pass

  drawn, stub = [], types.SimpleNamespace(interact=interact, SelectionSlider=lambda **given: given)
  monkeypatch.setattr(slides, '_in_notebook', lambda: True)
  monkeypatch.setitem(sys.modules, 'ipywidgets', stub)

  def draw(churn=0.5):
    drawn.append(churn)

  slide(draw, churn=[0.0, 0.5])
  assert drawn == [0.5]
  with pytest.raises(ZeroDivisionError):
    slide(lambda churn=0.0: 1 / churn, churn=[0.0, 0.5])
