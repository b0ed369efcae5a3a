"""Fashion-MNIST's 70,000 images of clothes, read from the four published files."""

import gzip
import math
import os
import pathlib
import zlib

from jaxtyping import UInt8
import numpy as np

from eqflow import files
from eqflow.data.records import InMemory, Source

# Where Debian's package dataset-fashion-mnist puts them.
SYSTEM = '/usr/share/datasets/fashion-mnist'
PREFIXES = {'train': ('train',), 'test': ('t10k',), 'all': ('train', 't10k')}
# Of 60,000 images, with the 16 bytes before them.
_MOST = 16 + 60_000 * 28 * 28
CLASSES = ('T-shirt', 'trouser', 'pullover', 'dress', 'coat', 'sandal', 'shirt', 'sneaker', 'bag',
           'ankle boot')


def find(data_dir: str | os.PathLike | None) -> pathlib.Path | None:
  """The folder with the four files: data_dir, data_dir/fashion_mnist or Debian's; None without one."""
  root = pathlib.Path(data_dir).expanduser() if data_dir else None
  places = ([root, root / 'fashion_mnist'] if root else []) + [pathlib.Path(SYSTEM)]
  return next((place for place in places if all(
      path.is_file() for prefix in PREFIXES['all'] for path in _paths(place, prefix))), None)


def source(folder: str | os.PathLike, *, split: str) -> Source:
  """'train' (60,000), 'test' (10,000) or 'all', in the files' order: uint8 [28, 28, 1], labels 0 to 9.

  The same records as TFDS has, in another order. Raises ValueError for any other split, and for a
  damaged file.
  """
  if split not in PREFIXES:
    raise ValueError(f'fashion_mnist, from the files in {folder}, has no split {split!r}: choose from '
                     f'{sorted(PREFIXES)}; slices such as \'train[:90%]\' need it prepared by TFDS, '
                     'with python -m eqflow.data.prepare --name=fashion_mnist')
  parts = [tuple(map(_read, _paths(pathlib.Path(folder), prefix))) for prefix in PREFIXES[split]]
  x, label = (np.concatenate(part) for part in zip(*parts))
  if x.shape[1:] != (28, 28) or label.shape != (len(x),) or label.max() > 9:
    raise ValueError(f'{folder}: images {x.shape} and labels {label.shape} up to {label.max()} are '
                     'not Fashion-MNIST: copy the four files again')
  return Source(InMemory(x[..., np.newaxis], label.astype(np.int32)), (28, 28, 1), 10, 'fashion_mnist',
                CLASSES)


def _paths(folder, prefix):
  return (folder / f'{prefix}-images-idx3-ubyte.gz', folder / f'{prefix}-labels-idx1-ubyte.gz')


def _read(path) -> UInt8[np.ndarray, '...']:
  """The array of an IDX file: bytes 0, 0, 8 (uint8), the rank, each size in 4 bytes, the data.

  At most 47 MB of it are unpacked, the size of 60,000 images.
  """
  try:
    with files.opened(path) as file, gzip.open(file) as unpacked:
      content = unpacked.read(_MOST + 1)
  except (OSError, EOFError, zlib.error) as error:
    raise ValueError(f'{path} cannot be read ({error}): copy it again') from error
  rank = content[3] if len(content) > 3 else 0
  sizes = np.frombuffer(content[4:4 + 4 * rank], '>u4')
  # In Python's integers, since the sizes of a damaged file may have any product.
  if content[:3] != b'\0\0\x08' or len(content) != 4 + 4 * rank + math.prod(map(int, sizes)):
    raise ValueError(f'{path} is not a complete IDX file of bytes: copy it again')
  return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(sizes)
