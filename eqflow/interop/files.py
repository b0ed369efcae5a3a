"""Safetensors files, read one tensor at a time and held against a layout."""

from collections.abc import Iterable, Mapping
import os
from typing import Any

import numpy as np
import safetensors
from safetensors import numpy as arrays

Path = str | os.PathLike
DTYPES = 'F32', 'BF16', 'F16'


def described(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
  """({key: shape}, {key: dtype}) of a file, of which nothing but the header is read."""
  with _open(path) as file:
    pieces = {key: file.get_slice(key) for key in file.keys()}
    return ({key: tuple(piece.get_shape()) for key, piece in pieces.items()},
            {key: piece.get_dtype() for key, piece in pieces.items()})


def read(path: Path, key: str) -> np.ndarray:
  """One tensor."""
  # Opened for each tensor anew: the pages of a mapped file stay in memory until it is closed.
  with _open(path) as file:
    return file.get_tensor(key)


def write(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
  """A new file of these. Raises ValueError where path exists."""
  if os.path.exists(path):
    raise ValueError(f'{path} exists: remove it, or name another file')
  arrays.save_file({key: np.asarray(a, order='C') for key, a in tensors.items()}, path)


def _open(path):
  if os.path.isdir(path):
    raise ValueError(f'{path} is a directory: name the safetensors file itself')
  try:
    return safetensors.safe_open(path, framework='numpy')
  except safetensors.SafetensorError as error:
    raise ValueError(f'{path} is no safetensors file ({error}). A pickle, such as torch writes, is '
                     'not opened here, since opening it runs what it says: convert it with '
                     'python -m eqflow.interop in.pt out.safetensors; EDM2\'s as the head of '
                     'eqflow/interop/edm2.py says, where its own code is installed') from error


def differences(expected: Mapping[str, tuple], found: Mapping[str, tuple],
                dtypes: Mapping[str, str]) -> list[str]:
  """What is missing, unknown, misshapen or of a dtype that is not read; None is any length."""
  text = lambda shape: '[' + ', '.join('?' if n is None else str(n) for n in shape) + ']'
  fits = lambda shape, other: len(shape) == len(other) and all(
      n in (None, m) for n, m in zip(shape, other))
  return ([f'missing {key} {text(shape)}' for key, shape in expected.items() if key not in found]
          + [f'unknown {key} {text(shape)}' for key, shape in found.items() if key not in expected]
          + [f'misshapen {key} {text(found[key])}, expected {text(shape)}'
             for key, shape in expected.items() if key in found and not fits(shape, found[key])]
          + [f'{key} of dtype {dtype}, expected one of {", ".join(DTYPES)}'
             for key, dtype in dtypes.items() if dtype not in DTYPES])


def one_of(name: str, given: Any, known: Iterable) -> None:
  """Raises ValueError where `given` is none of those known."""
  if given not in known:
    raise ValueError(f'{name}={given!r}: choose from {list(known)}')
