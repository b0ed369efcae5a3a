"""Files of arrays, for the tests of commands."""

import numpy as np

from tests.untrained import SHAPE


def saved(path, **arrays):
  """np.savez of the arrays; returns the path."""
  np.savez(path, **arrays)
  return path


def loaded(path):
  """{name: array} of a .npz file."""
  with np.load(path) as file:
    return dict(file)


def noisy(count, seed=0):
  """[count, 8, 8, 1] of unit noise."""
  return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(np.float32)
