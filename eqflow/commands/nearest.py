"""--neighbours: a run's samples next to the nearest training records. Does the model memorize?"""

from collections.abc import Sequence
import pathlib

from ml_collections import ConfigDict
import numpy as np

from eqflow.evaluation import images, memorization
from eqflow.runs import dataset, generate
from eqflow.training import progress


def report(config: ConfigDict, workdir: pathlib.Path, x: np.ndarray,
           captions: Sequence[str] = ()) -> None:
  """Prints how near samples x [n, ...] are to the training records; writes workdir/neighbours.npz.

  neighbours.npz has the `index` [n] of each sample's nearest record, whether it is `mirrored` [n], and
  its `squared` distance [n] in pixels; images are clipped to [-1, 1] first. neighbours.png shows the
  pairs, with the `captions` of the samples. With config.data.flip, mirrored records count too.
  """
  train, flip = dataset.training_records(config), config.data.flip
  count = len(train) // 2 if flip else len(train)
  progress.say(f'searching {len(train):,} training records for the nearest of each sample')
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
    far = [f'{squared:.3g}' for squared in found.squared]
    images.save_png(path, images.stacked(
        {'sample': x, 'nearest': train[found.index]}, columns=20,
        title='samples, and below each the nearest training record, at this squared distance in pixels',
        captions={'nearest': far} | ({'sample': captions} if captions else {})))
    print(f'each sample above its nearest training record, with their squared distance: {path}')
