"""Inputs from a .npy or .npz file: checked, and never unpickled."""

import pickle

import numpy as np
import pytest

from eqflow.data import inputs
from tests.commands.arrays import saved
from tests.untrained import SHAPE

BAD = [
    (dict(x=np.zeros((3, 8, 8), np.float32)), r'\(3, 8, 8\).*config.data.shape=\(8, 8, 1\)'),
    (dict(x=np.zeros((0, *SHAPE), np.float32)), r'\(0, 8, 8, 1\)'),
    (dict(images=np.zeros((3, *SHAPE))), r"\['images'\].*'x'"),
    (dict(x=np.zeros((3, *SHAPE), np.int64)), 'int64'),
    (dict(x=np.full((3, *SHAPE), np.nan)), '3 of 3 inputs'),
]


@pytest.mark.parametrize('arrays,message', BAD, ids=[message[:20] for _, message in BAD])
def test_inputs_of_another_kind_are_rejected(tmp_path, arrays, message):
  with pytest.raises(ValueError, match=message):
    inputs.read(saved(tmp_path / 'x.npz', **arrays), SHAPE)


class Canary:
  """A pickle that writes a file when it is read."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (str(self.path), 'w')


@pytest.mark.parametrize('write', [
    lambda path, thing: path.write_bytes(pickle.dumps(thing)),
    lambda path, thing: np.save(path, np.array([thing]), allow_pickle=True),
    lambda path, _: path.write_text('not an array')])
def test_inputs_are_never_unpickled(tmp_path, write):
  path, canary = tmp_path / 'x.npy', tmp_path / 'canary'
  write(path, Canary(canary))
  with pytest.raises(ValueError, match='x.npy'):
    inputs.read(path, SHAPE)
  assert not canary.exists(), 'the file was unpickled, and its code ran'
  with pytest.raises(FileNotFoundError, match='--inputs=.*nothing.npy'):
    inputs.read(tmp_path / 'nothing.npy', SHAPE)
