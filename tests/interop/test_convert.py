"""Conversion of torch checkpoints to safetensors, without torch."""

import pathlib
import subprocess
import sys
import types

import pytest

from eqflow.interop import convert
from tests import ROOT


class _Tensor:
  """The methods of a torch tensor that `convert` calls."""

  def __init__(self, pointer):
    self.pointer = pointer

  def detach(self):
    return self

  contiguous = detach

  def clone(self):
    return _Tensor(self.pointer + 100)

  def untyped_storage(self):
    return types.SimpleNamespace(data_ptr=lambda: self.pointer)


def _converted(monkeypatch, tmp_path, save_file):
  """Converts a file of three tensors to out/b, without torch; a and its tie share memory."""
  state = {'a': _Tensor(1), 'tied to a': _Tensor(1), 'b': _Tensor(2)}
  torch = types.SimpleNamespace(is_tensor=lambda a: isinstance(a, _Tensor))
  monkeypatch.setattr(convert, '_torch', lambda: torch)
  monkeypatch.setattr(convert, '_loaded', lambda torch, source: state)
  monkeypatch.setitem(sys.modules, 'safetensors.torch', types.SimpleNamespace(save_file=save_file))
  (tmp_path / 'in.pt').touch()
  (tmp_path / 'out').mkdir()
  convert.convert(tmp_path / 'in.pt', tmp_path / 'out/b')


def test_tensors_that_share_memory_are_each_written_in_full(monkeypatch, tmp_path):
  def save_file(state, path):
    assert {name: a.pointer for name, a in state.items()} == {'a': 1, 'tied to a': 101, 'b': 2}
    pathlib.Path(path).write_text('whole')

  _converted(monkeypatch, tmp_path, save_file)
  assert {path.name: path.read_text() for path in (tmp_path / 'out').iterdir()} == {'b': 'whole'}


def test_an_interrupted_conversion_leaves_no_file(monkeypatch, tmp_path):
  def save_file(state, path):
    pathlib.Path(path).write_text('ha')
    assert not (tmp_path / 'out/b').exists()
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    _converted(monkeypatch, tmp_path, save_file)
  assert not list((tmp_path / 'out').iterdir())


def test_converting_needs_a_safe_torch(monkeypatch, tmp_path, capsys):
  path = tmp_path / 'model.pt'
  path.write_bytes(b'')
  monkeypatch.setattr(sys, 'argv', ['interop', str(path), str(tmp_path / 'out')])
  for torch, named in ((None, 'torch >= 2.6'),
                       (types.SimpleNamespace(__version__='2.5.1+cpu'), 'torch 2.5.1.*torch >= 2.6')):
    monkeypatch.setitem(sys.modules, 'torch', torch)
    with pytest.raises(SystemExit, match=named):
      convert.main()
  assert not (tmp_path / 'out').exists()


def test_the_command_prints_its_usage():
  out = subprocess.run([sys.executable, '-m', 'eqflow.interop', '--help'], capture_output=True,
                       text=True, check=True, cwd=ROOT)
  assert 'python -m eqflow.interop in.pt out.safetensors' in out.stdout
