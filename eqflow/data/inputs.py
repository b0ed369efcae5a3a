"""A user's own inputs, from a .npy or .npz file: checked against the records of a config's data."""

import os
import pathlib
from typing import Any

from jaxtyping import Float32, Int32, Shaped
import numpy as np


def read(path: str | os.PathLike, shape: tuple[int, ...]) -> tuple[
    Float32[np.ndarray, 'n ...'], Shaped[np.ndarray, '...'] | None]:
  """(x [n, *shape], labels or None): a .npy file's array, or 'samples' or 'x' of a .npz file.

  Images of uint8 become x/127.5 - 1, as data does; floating ones are as they are. Labels are 'labels'
  of a .npz file, whatever they are: see `classes`. Pickles are never read. Raises ValueError for what
  is no such file, has other sizes, or numbers that are not finite.
  """
  path = pathlib.Path(path).expanduser()
  try:
    found = np.load(path, allow_pickle=False)
    arrays = dict(found) if isinstance(found, np.lib.npyio.NpzFile) else {'x': found}
  except FileNotFoundError as error:
    raise FileNotFoundError(f'there is no file {path} to read inputs from: give --inputs=a .npy or '
                            '.npz file') from error
  except Exception as error:
    # zipfile, numpy and the file system each have their own; a pickle is refused here too.
    raise ValueError(f'{path} is no .npy or .npz file of numbers ({error}): write it with np.save, or '
                     'np.savez(..., x=inputs)') from error
  key = next((key for key in ('samples', 'x') if key in arrays), None)
  if key is None:
    raise ValueError(f"{path} holds {sorted(arrays)}: name its inputs 'x', as np.savez(..., x=inputs)")
  return _floating(path, arrays[key], shape), arrays.get('labels')


def classes(path: str | os.PathLike, labels: Shaped[np.ndarray, '...'], count: int,
            num_classes: int) -> Int32[np.ndarray, 'n']:
  """The labels of a file as [count] classes below num_classes; raises ValueError for all others."""
  if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(f"{path}: 'labels' are {labels.dtype} of the shape {labels.shape}: give one whole "
                     f'number for each of {count} inputs, or --labels')
  if labels.min() < 0 or labels.max() >= num_classes:
    raise ValueError(f"{path}: 'labels' go from {labels.min()} to {labels.max()}, those of the model "
                     f'from 0 to {num_classes - 1}')
  return labels.astype(np.int32)


def _floating(path: Any, x, shape):
  if x.shape[1:] != tuple(shape) or not len(x):
    raise ValueError(f'{path} holds inputs of the shape {x.shape}, but config.data.shape='
                     f'{tuple(shape)}: give [n, {", ".join(map(str, shape))}], n of 1 or more')
  if x.dtype == np.uint8 and len(shape) == 3:
    return x.astype(np.float32) / 127.5 - 1
  if not np.issubdtype(x.dtype, np.floating):
    raise ValueError(f'{path} holds inputs of {x.dtype}: give floating ones, in [-1, 1] where they are '
                     'images without noise, or images of uint8')
  x = x.astype(np.float32)
  bad = int((~np.isfinite(x.reshape(len(x), -1)).all(1)).sum())
  if bad:
    raise ValueError(f'{path}: {bad} of {len(x)} inputs are not finite: leave them out')
  return x
