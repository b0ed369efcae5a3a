"""Turns a torch checkpoint into safetensors:   python -m eqflow.interop in.pt out.safetensors

The one step that reads a pickle, and it runs nothing of it: torch loads weights only, and of all
classes argparse.Namespace alone is allowed, which the files of EqM and SiT hold. No other part of
eqflow needs torch.
"""

import argparse
import contextlib
import os
import pathlib
import re
import sys
from typing import Any
import zipfile

from eqflow import files

Path = str | os.PathLike


def convert(source: Path, target: Path, *, key: str | None = None) -> str | None:
  """Writes the state dict of the torch file `source` to `target`; returns the key it was found under.

  key None takes 'ema' before 'model', and a file that is a state dict as it is. Tensors are mapped,
  so that what is not asked for is not read; those that share memory are written each in full. Raises
  ImportError without torch >= 2.6 and ValueError where the target exists, and where the file asks
  for anything but tensors and a Namespace, or holds no state dict there.
  """
  torch = _torch()
  from safetensors.torch import save_file
  if pathlib.Path(target).exists():
    raise ValueError(f'{target} exists: remove it, or name another file')
  loaded = _loaded(torch, source)
  state, key = _state(torch, source, loaded, key)
  with files.replacing(target) as file:
    save_file(_apart(state), file.name)
  return key


def _apart(state):
  """The tensors, contiguous, no two of them in one storage: safetensors refuses to write those."""
  apart, seen = {}, set()
  for name, a in state.items():
    a = a.detach().contiguous()
    if a.untyped_storage().data_ptr() in seen:
      a = a.clone()
    seen.add(a.untyped_storage().data_ptr())
    apart[name] = a
  return apart


def _torch() -> Any:
  """The module torch, where it is there and its weights-only loading is to be relied on."""
  try:
    import torch
  except ImportError as error:
    raise ImportError('reading a .pt file needs torch >= 2.6, in this step alone: pip install torch, '
                      'best in an environment of its own') from error
  # Before 2.6 a file could run code in spite of weights_only (CVE-2025-32434).
  if tuple(int(number) for number in torch.__version__.split('.')[:2]) < (2, 6):
    raise ImportError(f'torch {torch.__version__} can be made to run code by a .pt file even where '
                      'only weights are loaded: install torch >= 2.6')
  return torch


def _loaded(torch, source):
  # What is no zip file is of before torch 1.6, and cannot be mapped.
  mapped = zipfile.is_zipfile(source)
  try:
    with _allowing(torch.serialization, argparse.Namespace):
      return torch.load(source, map_location='cpu', weights_only=True, mmap=mapped)
  except OSError:
    raise
  # A hostile or broken file makes the unpickler fail in any way.
  except Exception as error:
    # Of torch's own words only this: they go on to recommend weights_only=False.
    asked = re.search(r'GLOBAL (\S+)', str(error))
    reason = f'asks for {asked[1]}' if asked else f'cannot be read ({type(error).__name__})'
    raise ValueError(f'{source} is refused, and nothing in it was run: it {reason}, where tensors and '
                     'an argparse.Namespace are allowed, and nothing else') from None


@contextlib.contextmanager
def _allowing(serialization, allowed):
  # safe_globals would add it to what other libraries allow.
  before = serialization.get_safe_globals()
  serialization.clear_safe_globals()
  serialization.add_safe_globals([allowed])
  try:
    yield
  finally:
    serialization.clear_safe_globals()
    serialization.add_safe_globals(before)


def _state(torch, source, loaded, key):
  held = loaded if isinstance(loaded, dict) else {}
  if key is None:
    key = next((name for name in ('ema', 'model') if isinstance(held.get(name), dict)), None)
  state = held if key is None else held.get(key)
  if not isinstance(state, dict) or not state or not all(map(torch.is_tensor, state.values())):
    where = 'at its top' if key is None else f'under {key!r}'
    raise ValueError(f'{source} holds no state dict {where}: give --key, one of {list(held)}')
  return state, key


def main() -> None:
  """`convert` from the command line."""
  parser = argparse.ArgumentParser(prog='python -m eqflow.interop', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('source', help='a file of torch.save: a checkpoint or a state dict')
  parser.add_argument('target', help='the safetensors file to write')
  parser.add_argument('--key', help="of a checkpoint's dict; else 'ema' before 'model'")
  flags = parser.parse_args()
  try:
    key = convert(**vars(flags))
  except (ImportError, OSError, ValueError) as error:
    sys.exit(str(error))
  print(f'{flags.target}: {flags.source if key is None else f"{key!r} of {flags.source}"}')


if __name__ == '__main__':
  main()
