"""Inputs from a .npy or .npz file: checked, and never unpickled."""

import pickle
import tracemalloc

import numpy as np
import pytest

from eqflow.data import inputs
from tests.commands.arrays import saved
from tests.faults import hostile
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


@pytest.mark.parametrize('content,named', [
    (b'no array', 'not an array of np.save'),
    (b"\x93NUMPY\1\0\x46\0{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 8, 8, 1)}".ljust(
        79) + b'\n' + bytes(512), r'shape \(-1, 8, 8, 1\)')])
def test_a_file_that_is_no_array_is_named_as_what_it_is(tmp_path, content, named):
  (tmp_path / 'x.npy').write_bytes(content)
  with pytest.raises(ValueError, match=f'x.npy.*{named}'):
    inputs.read(tmp_path / 'x.npy', SHAPE)


def test_only_the_needed_arrays_are_read(tmp_path):
  x, path = np.random.RandomState(0).randn(3, *SHAPE), tmp_path / 'x.npz'
  np.savez(path, x=x, labels=np.arange(3), unused=np.zeros(10**6))
  content = bytearray(path.read_bytes())
  content[content.index(b'unused.npy') + 10_000] ^= 1   # Its checksum would be wrong.
  path.write_bytes(content)
  found, labels = inputs.read(path, SHAPE)
  np.testing.assert_array_equal(found, x.astype(np.float32))
  np.testing.assert_array_equal(labels, [0, 1, 2])


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_every_order_and_precision_is_read(tmp_path, save):
  x = np.random.RandomState(0).randn(3, *SHAPE)
  for kind in (np.float16, np.float32, '>f4', np.float64):
    for order in 'CF':
      save(tmp_path / 'x.npz', x=np.asarray(x, kind, order=order))
      np.save(tmp_path / 'x.npy', np.asarray(x, kind, order=order))
      for name in ('x.npz', 'x.npy'):
        np.testing.assert_allclose(inputs.read(tmp_path / name, SHAPE)[0], x, atol=2e-3)
  save(tmp_path / 'x.npz', x=np.arange(192, dtype=np.uint8).reshape(3, *SHAPE))
  np.testing.assert_array_equal(inputs.read(tmp_path / 'x.npz', SHAPE)[0].ravel(),
                                np.arange(192).astype(np.float32) / np.float32(127.5) - 1)


@pytest.mark.parametrize('name', hostile.INPUTS)
def test_a_hostile_npy_is_rejected_before_it_is_read(tmp_path, name):
  hostile.INPUTS[name](tmp_path / 'x.npy')
  tracemalloc.start()
  with pytest.raises(ValueError, match='x.npy'):
    inputs.read(tmp_path / 'x.npy', SHAPE)
  assert tracemalloc.get_traced_memory()[1] < 2**22
  tracemalloc.stop()


@pytest.mark.parametrize('name', sorted(hostile.ZIPPED.keys() - {'x of 1 GiB', 'many labels'}))
def test_a_hostile_npz_is_rejected(tmp_path, name):
  hostile.ZIPPED[name](tmp_path / 'x.npz')
  with pytest.raises(ValueError, match='x.npz'):
    inputs.read(tmp_path / 'x.npz', SHAPE)


def test_an_array_above_the_limit_is_rejected(tmp_path, monkeypatch):
  monkeypatch.setattr(inputs, 'MOST', 4 * 64 * 3)
  np.savez(tmp_path / 'x.npz', x=np.zeros((3, *SHAPE), np.uint8))
  inputs.read(tmp_path / 'x.npz', SHAPE)
  for x in (np.zeros((4, *SHAPE), np.uint8), np.zeros((2, *SHAPE))):
    np.savez(tmp_path / 'x.npz', x=x)
    with pytest.raises(ValueError, match='768 bytes'):
      inputs.read(tmp_path / 'x.npz', SHAPE)


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
