"""Golden examples, which stand beside the checkout and are no part of it."""

import os
import pathlib

import numpy as np
import pytest


def example(state: str, forward: str) -> tuple[pathlib.Path, dict[str, np.ndarray]]:
  """(the file of the weights, the arrays of the forward pass); skips the test where there are none."""
  beside = pathlib.Path(__file__).parents[2] / 'shared' / 'golden'
  folder = pathlib.Path(os.environ.get('EQFLOW_GOLDEN', beside))
  if not folder.is_dir():
    pytest.skip(f'no golden examples at {folder}: set EQFLOW_GOLDEN')
  return folder / state, dict(np.load(folder / forward))
