"""Safetensors files: read one tensor at a time, written, and compared with an expected layout.

Reading needs the memory of the largest tensor, and at most 16 MiB of header. The library checks the
header against the size of the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import os

import numpy as np
import safetensors
from safetensors import numpy as arrays

from eqflow import files

Path = str | os.PathLike
HEADER = 2**24   # bytes
DTYPES = 'F32', 'BF16', 'F16'


def described(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
  """({key: shape}, {key: dtype}) of a file; reads only its header."""
  with _open(path) as file:
    pieces = {key: file.get_slice(key) for key in file.keys()}
    return ({key: tuple(piece.get_shape()) for key, piece in pieces.items()},
            {key: piece.get_dtype() for key, piece in pieces.items()})


def read(path: Path, key: str) -> np.ndarray:
  """The tensor of this key. Raises ValueError for NaN, infinity and dtypes not in DTYPES."""
  # Opened for each tensor: the pages of a mapped file stay in memory until it is closed.
  with _open(path) as file:
    if key not in file.keys():
      raise ValueError(f'{path} has no tensor {key}; it has {sorted(file.keys())[:20]}')
    dtype = file.get_slice(key).get_dtype()
    if dtype not in DTYPES:
      raise ValueError(f'{path}: {key} has dtype {dtype}; weights are {", ".join(DTYPES)}: cast it')
    a = file.get_tensor(key)
  bad = a.size - int(np.isfinite(a).sum())
  if bad:
    raise ValueError(f'{path}: {bad:,} of {a.size:,} numbers of {key} are NaN or infinite; weights '
                     'must be finite: get the file again, or an earlier checkpoint')
  return a


def write(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes the tensors to a new file. Raises ValueError if path exists."""
  if os.path.exists(path):
    raise ValueError(f'{path} exists: remove it, or choose another path')
  arrays.save_file({key: np.asarray(a, order='C') for key, a in tensors.items()}, path)


def _open(path):
  with files.opened(path) as file:
    length = int.from_bytes(file.read(8), 'little')
  try:
    # The library would parse 100 MB of them, in several times as much memory.
    if length > HEADER:
      raise safetensors.SafetensorError(f'its header of {length:,} bytes is longer than {HEADER:,}')
    return safetensors.safe_open(path, framework='numpy')
  except safetensors.SafetensorError as error:
    raise ValueError(f'{path} is not a safetensors file ({error}). A pickle, such as a .pt file, can '
                     'run code and is not opened: convert it with python -m eqflow.interop in.pt '
                     'out.safetensors. For EDM2 see the docstring of eqflow/interop/edm2.py') from error


def differences(expected: Mapping[str, tuple], found: Mapping[str, tuple],
                dtypes: Mapping[str, str]) -> list[str]:
  """One line for each missing, unknown or misshapen tensor or wrong dtype; None fits any length."""
  text = lambda shape: '[' + ', '.join('?' if n is None else str(n) for n in shape) + ']'
  fits = lambda shape, other: len(shape) == len(other) and all(
      n in (None, m) for n, m in zip(shape, other))
  return ([f'missing {key} {text(shape)}' for key, shape in expected.items() if key not in found]
          + [f'unknown {key} {text(shape)}' for key, shape in found.items() if key not in expected]
          + [f'misshapen {key} {text(found[key])}, expected {text(shape)}'
             for key, shape in expected.items() if key in found and not fits(shape, found[key])]
          + [f'dtype {dtype} of {key}, expected one of {", ".join(DTYPES)}'
             for key, dtype in dtypes.items() if dtype not in DTYPES])


def one_of(name: str, given: str, known: Iterable[str]) -> None:
  """Raises ValueError unless `given` is one of the known names."""
  if given not in known:
    raise ValueError(f'{name}={given!r}: choose from {list(known)}')
