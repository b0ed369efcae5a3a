"""How near samples are to the training records: is a model memorizing?"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array, Float, Int
import numpy as np

from eqflow.evaluation import distances, features

Records = Float[Array | np.ndarray, '_ ...']
# The number of records to compare with other records: enough for a median and a quantile.
_MOST = 2_000


class Nearest(NamedTuple):
  """Each sample's nearest training record, and how near records are to each other; all in pixels."""
  index: Int[np.ndarray, '_']       # its row in the training records
  squared: Float[np.ndarray, '_']   # its squared distance
  others: Float[np.ndarray, '_']    # squared distances of training records to the nearest other record
  copied: float                     # fraction of samples as near as the nearest 5 % of records


def nearest(x: Records, train: Records, *, flip: bool = False) -> Nearest:
  """Compares samples x with the records that a model was trained on.

  `others`, each record left out in turn, shows the distances to expect of new data of the same kind.
  With flip, the second half of train mirrors the first.
  """
  index, squared = distances.nearest(features.pixels(x), features.pixels(train))
  # Mirrored records have the same distances as the first half.
  count = len(train) // 2 if flip else len(train)
  rows = np.arange(count) if count <= _MOST else np.linspace(0, count - 1, _MOST).astype(int)
  others = to_other_records(train, rows, flip=flip)
  return Nearest(index, squared, others, float((squared < np.quantile(others, 0.05)).mean()))


def to_other_records(train: Records, rows: Int[np.ndarray, 'm'], *,
                     flip: bool = False) -> Float[np.ndarray, 'm']:
  """[m] squared distance in pixels of the records `rows` to the nearest other record.

  With flip, the second half of train mirrors the first, and a record's own mirror image does not count.
  """
  space = features.pixels(train)
  # Each half excludes one record: the record itself, and its mirror image.
  halves = np.split(space, 2) if flip else [space]
  excluded = rows % len(halves[0])
  return np.min([distances.nearest(space[rows], half, leave=excluded)[1] for half in halves], axis=0)
