"""--neighbours: is a model memorising? Its samples next to the training records they are nearest to."""

import pathlib

from ml_collections import ConfigDict
import numpy as np

from eqflow import run
from eqflow.data import pipeline
from eqflow.evaluation import distances, features, images

# The records whose own neighbours are looked for: enough for a median and a quantile.
_MOST = 2_000


def records(config: ConfigDict) -> np.ndarray:
  """What the model was trained on, [n, ...]: all of config.data."""
  return pipeline.arrays(run.open_source(config))[0]


def among_themselves(train: np.ndarray, rows: np.ndarray) -> np.ndarray:
  """[len(rows)] squared distance of the records `rows` to the nearest other record, in pixels."""
  space = features.pixels(train)
  return distances.nearest(space[rows], space, leave=rows)[1]


def report(config: ConfigDict, workdir: pathlib.Path, x: np.ndarray) -> None:
  """Prints how near samples x [n, ...] are to the training data, and writes workdir/neighbours.png.

  Distances are squared, in pixels; images are clipped to [-1, 1] first. The data's own, each record
  left out in turn, are what new data of the same kind would show.
  """
  train = records(config)
  x = np.clip(x, -1, 1) if x.ndim == 4 else x
  index, squared = distances.nearest(features.pixels(x), features.pixels(train))
  rows = np.arange(len(train)) if len(train) <= _MOST else np.linspace(
      0, len(train) - 1, _MOST).astype(int)
  own = among_themselves(train, rows)
  near = (squared < np.quantile(own, 0.05)).mean()
  print(f'squared distance to the nearest of {len(train):,} training records, at the median: '
        f'{np.median(squared):.3g} of {len(x):,} samples, {np.median(own):.3g} of records to each '
        f'other; {near:.0%} of the samples are as near as the nearest 5 % of records')
  if x.ndim == 4:
    path = workdir / 'neighbours.png'
    images.save_png(path, images.stacked(x[:100], train[index[:100]], columns=20))
    print(f'each sample above its nearest training record: {path}')
