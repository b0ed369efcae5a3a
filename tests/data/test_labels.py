"""Labels that are not classes: rejected before training, or when their batch is read."""

import contextlib
import dataclasses

from ml_collections import ConfigDict
import numpy as np
import pytest

from eqflow.config import consistency
from eqflow.data import pipeline, records
from tests.rejected import rejected


@dataclasses.dataclass(frozen=True, eq=False)
class Lazy:
  """Records that are not in arrays, as of a large data set: record i has label[i]."""

  label: np.ndarray

  def __len__(self):
    return len(self.label)

  def __getitem__(self, i):
    return {'x': np.zeros(2, np.float32), 'label': int(self.label[i])}

  def labels(self, rows):
    return self.label[rows]


def source_of(label, *, lazy=False):
  label = np.array(label, np.int32)
  data = Lazy(label) if lazy else records.InMemory(np.zeros((len(label), 2), np.float32), label)
  return records.Source(data, (2,), 3, 'numbers')


def check(source, num_classes=3):
  consistency.check_source(ConfigDict({'data': {'shape': (2,), 'num_classes': num_classes}}), source)


@pytest.mark.parametrize('lazy', [False, True])
@pytest.mark.parametrize('label, first, count', [
    ([-1] * 9, 'record 0', '9 of 9'), ([0, 1, -1, 2], 'record 2', '1 of 4'),
    ([0, 3, 1], 'record 1', '1 of 3'), ([2, 1, 0, 2**31 - 1], 'record 3', '1 of 4')])
def test_labels_outside_the_classes_are_rejected(label, first, count, lazy):
  with rejected('data.num_classes', first, count, 'from 0 to 2', '--config.data.num_classes=0'):
    check(source_of(label, lazy=lazy))
  check(source_of(label, lazy=lazy), num_classes=0)


def test_labels_that_are_classes_pass():
  for lazy in (False, True):
    check(source_of([0, 2, 1], lazy=lazy))


def test_a_label_that_was_not_looked_at_is_rejected_when_it_is_read():
  label = np.zeros(5_000, np.int32)
  label[1] = -1
  source = source_of(label, lazy=True)
  check(source)   # One in five is looked at.
  with contextlib.closing(pipeline.batches(source, seed=0, batch=1_000)) as batches:
    with pytest.raises(ValueError, match='record 1 of numbers has the label -1'):
      for _ in range(5):
        next(batches)
