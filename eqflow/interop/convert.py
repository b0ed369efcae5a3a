"""Turns a torch checkpoint into safetensors:   python -m eqflow.interop in.pt out.safetensors

Reads a pickle without running code from it: torch loads weights only, and the only class that it may
construct is argparse.Namespace, which the files of EqM and SiT contain. No other part of eqflow needs
torch.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import re
import sys
import types
import zipfile

from eqflow import files

Path = str | os.PathLike


def convert(source: Path, target: Path, *, key: str | None = None) -> str | None:
  """Writes the state dict of the torch file `source` to `target`; returns the key it was found under.

  key=None takes 'ema', then 'model', then the file itself as a state dict. The file is memory-mapped,
  so that other tensors are not read. Tensors that share memory are each written in full. Raises
  ImportError without torch >= 2.6. Raises ValueError if the target exists, if the file needs classes
  other than tensors and Namespace, and if it has no state dict under this key.
  """
  torch = _torch()
  from safetensors.torch import save_file
  if pathlib.Path(target).exists():
    raise ValueError(f'{target} exists: remove it, or choose another target')
  files.opened(source).close()
  loaded = _loaded(torch, source)
  state, key = _state(torch, source, loaded, key)
  with files.replacing(target) as file:
    save_file(_apart(state), file.name)
  return key


def _apart(state):
  """Contiguous tensors that share no memory: safetensors cannot write shared memory."""
  apart, seen = {}, set()
  for name, a in state.items():
    a = a.detach().contiguous()
    if a.untyped_storage().data_ptr() in seen:
      a = a.clone()
    seen.add(a.untyped_storage().data_ptr())
    apart[name] = a
  return apart


def _torch() -> types.ModuleType:
  """The module torch; raises ImportError without it, or if its weights-only loading is unsafe."""
  try:
    import torch
  except ImportError as error:
    raise ImportError('reading a .pt file needs torch >= 2.6, which nothing else needs: pip install '
                      'torch, best in a separate environment') from error
  # Before torch 2.6 a file could run code despite weights_only=True (CVE-2025-32434).
  if tuple(int(number) for number in torch.__version__.split('.')[:2]) < (2, 6):
    raise ImportError(f'torch {torch.__version__} may run code from a .pt file even if it loads only '
                      'weights: install torch >= 2.6')
  return torch


def _loaded(torch, source):
  # Files from before torch 1.6 are not zip files and cannot be mapped.
  mapped = zipfile.is_zipfile(source)
  try:
    with _allowing(torch.serialization, argparse.Namespace):
      return torch.load(source, map_location='cpu', weights_only=True, mmap=mapped)
  except OSError:
    raise
  # A hostile or damaged file can make the unpickler raise any exception.
  except Exception as error:
    # Not the whole message of torch: it goes on to recommend weights_only=False.
    asked = re.search(r'GLOBAL (\S+)', str(error))
    reason = f'needs {asked[1]}' if asked else f'cannot be read ({type(error).__name__})'
    raise ValueError(f'{source} {reason}: only tensors and argparse.Namespace are allowed; no code of '
                     'it was run') from None


@contextlib.contextmanager
def _allowing(serialization, allowed):
  # torch.serialization.safe_globals would also allow the classes of other libraries.
  before = serialization.get_safe_globals()
  serialization.clear_safe_globals()
  serialization.add_safe_globals([allowed])
  try:
    yield
  finally:
    serialization.clear_safe_globals()
    serialization.add_safe_globals(before)


def _state(torch, source, loaded, key):
  found = loaded if isinstance(loaded, dict) else {}
  if key is None:
    key = next((name for name in ('ema', 'model') if isinstance(found.get(name), dict)), None)
  state = found if key is None else found.get(key)
  if not isinstance(state, dict) or not state or not all(map(torch.is_tensor, state.values())):
    where = 'at its top' if key is None else f'under {key!r}'
    raise ValueError(f'{source} has no state dict {where}: give --key, one of {list(found)}')
  return state, key


def main() -> None:
  """`convert` from the command line."""
  parser = argparse.ArgumentParser(prog='python -m eqflow.interop', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('source', help='a file written by torch.save: a checkpoint or a state dict')
  parser.add_argument('target', help='the safetensors file to write')
  parser.add_argument('--key', help="key of the state dict; default: 'ema', then 'model'")
  flags = parser.parse_args()
  try:
    key = convert(**vars(flags))
  except (ImportError, OSError, ValueError) as error:
    sys.exit(str(error))
  print(f'{flags.target}: {flags.source if key is None else f"{key!r} of {flags.source}"}')


if __name__ == '__main__':
  main()
