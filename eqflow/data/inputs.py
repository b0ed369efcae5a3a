"""A user's own inputs, from a .npy or .npz file: checked against the records of a config's data."""

from collections.abc import Callable
import contextlib
import io
import math
import os
import pathlib
from typing import BinaryIO
import zipfile

from jaxtyping import Float32, Int32, Shaped
import numpy as np

from eqflow import files

MOST = 2**30       # bytes of an array, where uint8 counts as the float32 that it becomes
DIRECTORY = 2**22  # bytes of the table of members of a .npz file
_HEADER = 10_000   # bytes before an array; numpy's own limit


def read(path: str | os.PathLike, shape: tuple[int, ...]) -> tuple[
    Float32[np.ndarray, 'n ...'], Shaped[np.ndarray, '...'] | None]:
  """(x [n, *shape], labels or None): a .npy file's array, or 'samples' or 'x' of a .npz file.

  uint8 images become x/127.5 - 1, as data do; floating inputs are unchanged. Labels are 'labels' of a
  .npz file, unchecked: see `classes`. Other arrays are not read, and pickles never are. Kinds, shapes
  and sizes are checked before an array is read: at most 2^30 bytes as float32 or wider, so that reading
  needs at most 2 GiB. Raises ValueError for other files, other shapes, NaN and infinite numbers.
  """
  path, shape = pathlib.Path(path).expanduser(), tuple(shape)
  try:
    with files.opened(path) as file:
      x, labels = (_of_zip if zipfile.is_zipfile(file) else _of_array)(file, shape)
  except FileNotFoundError as error:
    raise FileNotFoundError(f'--inputs={path} does not exist: give a .npy or .npz file') from error
  # zipfile, zlib, numpy and the file system raise errors of their own.
  except Exception as error:
    raise ValueError(f'{path} cannot be used: {error}; give a file of np.save, or of '
                     'np.savez(..., x=inputs)') from error
  return x, labels


def _of_array(file, shape):
  size = file.seek(0, os.SEEK_END)

  def opened():
    file.seek(0)
    return contextlib.nullcontext(file)

  return _as_data(_array(opened, size, lambda *found: _check(*found, shape))), None


class _Bounded(io.BufferedReader):
  """A file that is read in pieces: zipfile would read a directory of any size as one."""

  def read(self, size: int | None = -1) -> bytes:
    """Raises ValueError for more than DIRECTORY bytes at once."""
    if size is not None and size > DIRECTORY:
      raise ValueError(f'its directory has {size:,} bytes, more than {DIRECTORY:,}')
    return super().read(size)


def _of_zip(file, shape):
  with zipfile.ZipFile(_Bounded(file)) as archive:
    members = {info.filename.removesuffix('.npy'): info for info in archive.infolist()}
    key = next((key for key in ('samples', 'x') if key in members), None)
    if key is None:
      raise ValueError(f"it has the arrays {sorted(members)[:20]}, but the inputs are called 'x'")

    def array(key, check):
      info = members[key]
      # The other methods need memory without a bound.
      if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f'{key!r} is compressed by another method than of np.savez_compressed')
      return _array(lambda: archive.open(info), info.file_size, check)

    x = array(key, lambda *found: _check(*found, shape))
    return _as_data(x), array('labels', _check_labels) if 'labels' in members else None


def _array(opened: Callable[[], contextlib.AbstractContextManager[BinaryIO]], size: int,
           check: Callable[[tuple[int, ...], np.dtype], None]) -> np.ndarray:
  """The array of a .npy file of `size` bytes, after check(its shape, its dtype)."""
  with opened() as file:
    head = io.BytesIO(file.read(_HEADER))
  if not head.getvalue().startswith(np.lib.format.MAGIC_PREFIX):
    raise ValueError('it is not an array of np.save')
  header = {(1, 0): np.lib.format.read_array_header_1_0}.get(
      np.lib.format.read_magic(head), np.lib.format.read_array_header_2_0)
  shape, _, dtype = header(head, max_header_size=_HEADER)
  if min(shape, default=0) < 0:
    raise ValueError(f'its header has the shape {shape}')
  check(shape, dtype)
  needed = head.tell() + math.prod(shape) * dtype.itemsize
  if size < needed:
    raise ValueError(f'its header promises {needed:,} bytes, but it has {size:,}')
  with opened() as file:
    return np.lib.format.read_array(file, allow_pickle=False)


def _check(found, dtype, shape):
  if found[1:] != shape or not found[0]:
    raise ValueError(f'the inputs have shape {found}, but config.data.shape={shape} needs '
                     f'[n, {", ".join(map(str, shape))}], n of 1 or more')
  if not (dtype == np.uint8 and len(shape) == 3 or np.issubdtype(dtype, np.floating)):
    raise ValueError(f'the inputs are {dtype}, but must be floating, images without noise in [-1, 1], '
                     'or uint8 images')
  if math.prod(found) * max(dtype.itemsize, 4) > MOST:
    raise ValueError(f'{math.prod(found):,} numbers are more than {MOST:,} bytes; split them')


def _check_labels(found, dtype):
  if dtype.hasobject or math.prod(found) * dtype.itemsize > MOST // 16:
    raise ValueError(f"'labels' are {dtype} of shape {found}, but must be an integer for each input")


def _as_data(x):
  if x.dtype == np.uint8:
    x = x.astype(np.float32)
    x /= 127.5
    x -= 1
    return x
  with np.errstate(over='ignore'):
    x = x.astype(np.float32)
  bad = int((~np.isfinite(x.reshape(len(x), -1)).all(1)).sum())
  if bad:
    raise ValueError(f'{bad} of {len(x)} inputs contain NaN or inf')
  return x


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
