"""--neighbours: is a model memorising? Its samples next to the training records they are nearest to."""

import pathlib

from ml_collections import ConfigDict
import numpy as np

from eqflow.data import pipeline
from eqflow.evaluation import distances, features, images
from eqflow.runs import dataset, generate

# The records whose own neighbours are looked for: enough for a median and a quantile.
_MOST = 2_000


def records(config: ConfigDict) -> np.ndarray:
  """What the model was trained on, [n, ...]: all of config.data; with its flip, then all mirrored."""
  x = pipeline.arrays(dataset.open_source(config))[0]
  return np.concatenate([x, x[:, :, ::-1]]) if config.data.flip else x


def among_themselves(train: np.ndarray, rows: np.ndarray, *, flip: bool = False) -> np.ndarray:
  """[len(rows)] squared distance of the records `rows` to the nearest other record, in pixels.

  With flip the second half of train mirrors the first, and a record's own image is no other record.
  """
  space = features.pixels(train)
  # Each half has one record that is left out: the record itself, and its image.
  halves = np.split(space, 2) if flip else [space]
  leave = rows % len(halves[0])
  return np.min([distances.nearest(space[rows], half, leave=leave)[1] for half in halves], axis=0)


def report(config: ConfigDict, workdir: pathlib.Path, x: np.ndarray) -> None:
  """Prints how near samples x [n, ...] are to the training data, and writes workdir/neighbours.npz.

  It holds the number `index` [n] of each sample's nearest record, whether that is `mirrored` [n], and
  how far it is, `squared` [n], in pixels; images are clipped to [-1, 1] first, and neighbours.png
  shows them. The data's own, each record left out in turn, are what new data of the same kind would
  show. With config.data.flip the mirrored records are training records too.
  """
  train, flip = records(config), config.data.flip
  count = len(train) // 2 if flip else len(train)
  x = np.clip(x, -1, 1) if x.ndim == 4 else x
  index, squared = distances.nearest(features.pixels(x), features.pixels(train))
  # Mirrored records are as far from each other as those they mirror: these tell of all.
  rows = np.arange(count) if count <= _MOST else np.linspace(0, count - 1, _MOST).astype(int)
  own = among_themselves(train, rows, flip=flip)
  near = (squared < np.quantile(own, 0.05)).mean()
  print(f'squared distance to the nearest of {len(train):,} training records'
        f'{", half of them mirrored" if flip else ""}, at the median: '
        f'{np.median(squared):.3g} of {len(x):,} samples, {np.median(own):.3g} of records to each '
        f'other; {near:.0%} of the samples are as near as the nearest 5 % of records')
  generate.save(workdir / 'neighbours.npz', index=index % count, mirrored=index >= count,
              squared=squared)
  if x.ndim == 4:
    path = workdir / 'neighbours.png'
    images.save_png(path, images.stacked(x[:100], train[index[:100]], columns=20))
    print(f'each sample above its nearest training record: {path}')
