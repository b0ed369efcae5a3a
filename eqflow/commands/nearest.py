"""--neighbours: a run's samples next to the nearest training records. Does the model memorize?"""

import pathlib

from ml_collections import ConfigDict
import numpy as np

from eqflow.evaluation import images, memorization
from eqflow.runs import dataset, generate


def report(config: ConfigDict, workdir: pathlib.Path, x: np.ndarray) -> None:
  """Prints how near samples x [n, ...] are to the training records; writes workdir/neighbours.npz.

  neighbours.npz has the `index` [n] of each sample's nearest record, whether it is `mirrored` [n], and
  its `squared` distance [n] in pixels; images are clipped to [-1, 1] first. neighbours.png shows the
  pairs. With config.data.flip, mirrored records are training records too.
  """
  train, flip = dataset.training_records(config), config.data.flip
  count = len(train) // 2 if flip else len(train)
  x = np.clip(x, -1, 1) if x.ndim == 4 else x
  found = memorization.nearest(x, train, flip=flip)
  print(f'squared distance to the nearest of {len(train):,} training records'
        f'{", half of them mirrored" if flip else ""}, median: {np.median(found.squared):.3g} for '
        f'{len(x):,} samples, {np.median(found.others):.3g} between records; {found.copied:.0%} of the '
        f'samples are as near as the nearest 5 % of records')
  generate.save(workdir / 'neighbours.npz', index=found.index % count, mirrored=found.index >= count,
                squared=found.squared)
  if x.ndim == 4:
    path = workdir / 'neighbours.png'
    images.save_png(path, images.stacked(x[:100], train[found.index[:100]], columns=20))
    print(f'each sample above its nearest training record: {path}')
