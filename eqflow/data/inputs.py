"""A user's own inputs, from a .npy or .npz file: checked against the records of a config's data."""

import os
import pathlib

from jaxtyping import Float32, Int32, Shaped
import numpy as np


def read(path: str | os.PathLike, shape: tuple[int, ...]) -> tuple[
    Float32[np.ndarray, 'n ...'], Shaped[np.ndarray, '...'] | None]:
  """(x [n, *shape], labels or None): a .npy file's array, or 'samples' or 'x' of a .npz file.

  uint8 images become x/127.5 - 1, as data do; floating inputs are unchanged. Labels are 'labels' of a
  .npz file, unchecked: see `classes`. Pickles are never read. Raises ValueError for other files, other
  shapes, NaN and infinite numbers.
  """
  path = pathlib.Path(path).expanduser()
  try:
    found = np.load(path, allow_pickle=False)
    arrays = dict(found) if isinstance(found, np.lib.npyio.NpzFile) else {'x': found}
  except FileNotFoundError as error:
    raise FileNotFoundError(f'--inputs={path} does not exist: give a .npy or .npz file') from error
  except Exception as error:
    # zipfile, numpy and the file system raise errors of their own; pickles are rejected here too.
    raise ValueError(f'{path} is not a .npy or .npz file of numbers ({error}): write it with np.save, '
                     'or np.savez(..., x=inputs)') from error
  key = next((key for key in ('samples', 'x') if key in arrays), None)
  if key is None:
    raise ValueError(f"{path} has the arrays {sorted(arrays)}: call the inputs 'x'")
  return _as_data(path, arrays[key], shape), arrays.get('labels')


def classes(path: str | os.PathLike, labels: Shaped[np.ndarray, '...'], count: int,
            num_classes: int) -> Int32[np.ndarray, 'n']:
  """The labels of a file as [count] classes below num_classes; raises ValueError for other ones."""
  if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(f"{path}: 'labels' are {labels.dtype} of shape {labels.shape}: give one integer "
                     f'for each of {count} inputs, or --labels')
  if labels.min() < 0 or labels.max() >= num_classes:
    raise ValueError(f"{path}: 'labels' range from {labels.min()} to {labels.max()}, the classes of "
                     f'the model from 0 to {num_classes - 1}')
  return labels.astype(np.int32)


def _as_data(path, x, shape):
  if x.shape[1:] != tuple(shape) or not len(x):
    raise ValueError(f'{path} has inputs of shape {x.shape}, but config.data.shape='
                     f'{tuple(shape)}: give [n, {", ".join(map(str, shape))}], n of 1 or more')
  if x.dtype == np.uint8 and len(shape) == 3:
    return x.astype(np.float32) / 127.5 - 1
  if not np.issubdtype(x.dtype, np.floating):
    raise ValueError(f'{path} has inputs of {x.dtype}: give floating inputs, images without noise in '
                     '[-1, 1], or uint8 images')
  x = x.astype(np.float32)
  bad = int((~np.isfinite(x.reshape(len(x), -1)).all(1)).sum())
  if bad:
    raise ValueError(f'{path}: {bad} of {len(x)} inputs contain NaN or inf: remove them')
  return x
