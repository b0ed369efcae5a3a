"""name -> Source: digits, Fashion-MNIST, image folders, toys, pairs of a model, all TFDS data sets."""

import os

from eqflow.data import fashion_mnist, folder, pairs, prepared, toys
from eqflow.data.records import InMemory, Source, decoded_if_small

TOYS = {
    'moons':        (toys.moons, 2),
    'checkerboard': (toys.checkerboard, 8),
    'rings':        (toys.rings, 3),
    'mixture':      (toys.mixture, 8),
}


def load(name: str, *, split: str, data_dir: str | os.PathLike | None,
         size: tuple[int, int] | None = None,
         seed: int = 0, num_points: int = 10_000, channels: int = 3,
         cache_dir: str | os.PathLike | None = None) -> Source:
  """The records of data set `name`; data sets of at most 256 MiB are decoded and kept in memory.

  'digits' (prepared in data_dir on first use): 'train', 'heldout' or 'all', in a fixed order.
  'folder' (data_dir is the folder): 'train' or 'all', both every image, [*size, channels];
    `cache_dir` stores the index of intact files (default ~/.cache/eqflow/index).
  'pairs' (data_dir is the folder that --mode=pairs wrote): 'train' or 'all', both every pair.
  'fashion_mnist' (prepared by TFDS in data_dir, or its four published files there, or where Debian's
    package dataset-fashion-mnist puts them): 'train', 'test' or 'all'.
  A toy: 'train' and 'heldout' are the first and the next num_points points of `seed`, 'all' both.
  Any other name is a TFDS data set prepared in data_dir, with the splits of TFDS.

  Images are uint8 [h, w, c]; size=None keeps their size, else they are cropped to (height, width).
  Raises ValueError for an unknown split and FileNotFoundError for missing data; both say what exists
  and what to do.
  """
  if not name:
    raise ValueError(f'no data set has an empty name: give one of {sorted(TOYS)}, digits, '
                     'fashion_mnist, folder, pairs, or one of TFDS')
  if name in TOYS:
    return _toy(name, split, num_points, seed)
  if name == 'folder':
    return _folder(split, data_dir, size, channels, cache_dir)
  if name == 'pairs':
    _check_split('pairs', split, ('train', 'all'))
    return pairs.source(data_dir)
  if name == 'digits':
    return _digits(split, data_dir, size)
  if name == 'fashion_mnist' and prepared.find(name, data_dir) is None:
    return _fashion_mnist(split, data_dir, size)
  if name == 'fashion_mnist' and split == 'all':
    split = 'train+test'
  return decoded_if_small(prepared.source(name, split=split, data_dir=data_dir, size=size))


def _toy(name, split, num_points, seed):
  rows = {'train': slice(num_points), 'heldout': slice(num_points, None), 'all': slice(None)}
  _check_split(name, split, rows)
  draw, num_classes = TOYS[name]
  x, label = draw(2 * num_points, seed)
  return Source(InMemory(x[rows[split]], label[rows[split]]), (2,), num_classes, name)


def _folder(split, data_dir, size, channels, cache_dir):
  _check_split('folder', split, ('train', 'all'),
               '; for held-out images use another folder as data_dir')
  if data_dir is None or size is None:
    raise ValueError(f"data_dir={data_dir!r}, size={size!r} for the data set 'folder': give data_dir, "
                     'the folder of images, and size, to which they are cropped')
  return decoded_if_small(folder.source(data_dir, size=size, channels=channels,
                                        cache_dir=cache_dir))


def _digits(split, data_dir, size):
  names = {'train': 'train', 'heldout': 'heldout', 'all': 'train+heldout'}
  _check_split('digits', split, names)
  if prepared.find('digits', data_dir) is None:
    from eqflow.data import digits
    digits.prepare(data_dir)
  source = prepared.source('digits', split=names[split], data_dir=data_dir, size=size)
  return decoded_if_small(source)


def _fashion_mnist(split, data_dir, size):
  place = fashion_mnist.find(data_dir)
  if place is None:
    try:
      return prepared.source('fashion_mnist', split=split, data_dir=data_dir)
    except FileNotFoundError as error:
      raise FileNotFoundError(
          f"{error}. Or put the four files of Fashion-MNIST there, or install Debian's package "
          'dataset-fashion-mnist') from error
  if size not in (None, (28, 28)):
    raise ValueError(f'size={size}, but the images of fashion_mnist have size=(28, 28): prepare it '
                     'with python -m eqflow.data.prepare --name=fashion_mnist to resize them')
  return fashion_mnist.source(place, split=split)


def _check_split(name, split, allowed, advice=''):
  if split not in allowed:
    raise ValueError(f'{name} has no split {split!r}: choose from {sorted(allowed)}{advice}')
