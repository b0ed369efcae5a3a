"""A data set: numbered records {'x', 'label'} of one shape.

Pairs of noise and data also have 'eps', with the shape of x.
"""

import concurrent.futures
import dataclasses
import os
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int, UInt8
import numpy as np

# Data sets of at most this many bytes are decoded once and kept in memory.
MEMORY = 256 * 2**20

Labels = Int[np.ndarray, 'n']
Batch = dict[str, UInt8[np.ndarray, 'b h w c'] | Float[np.ndarray, 'b ...'] | Labels]


@runtime_checkable
class Records(Protocol):
  """Records at random access; grain pickles them for its worker processes."""

  def __len__(self):
    ...

  def __getitem__(self, i):
    ...


@dataclasses.dataclass(frozen=True)
class Source:
  """Records at random access: source[i] = {'x': uint8 [h, w, c] or float32, 'label': int}.

  `records` returns these dicts, `shape` is the shape of x, `num_classes` is 0 for data without labels,
  and `damaged` lists the files that cannot be read.
  """

  records: Records
  shape: tuple[int, ...]
  num_classes: int
  name: str
  damaged: tuple[str, ...] = ()

  def __len__(self):
    return len(self.records)

  def __getitem__(self, i):
    return self.records[i]


@dataclasses.dataclass(frozen=True, eq=False)
class InMemory:
  """Records in two arrays, x [n, ...] and label int32 [n], so that a batch is one gather."""

  x: np.ndarray
  label: np.ndarray

  def __len__(self):
    return len(self.x)

  def __getitem__(self, i):
    return {'x': self.x[i], 'label': int(self.label[i])}

  def gather(self, rows: Int[np.ndarray, 'b']) -> Batch:
    """The records numbered `rows`, as fresh arrays."""
    return {'x': self.x[rows], 'label': self.label[rows]}


def gather(source: Source, rows: Int[np.ndarray, 'b']) -> Batch:
  """{'x': [b, ...], 'label': int32 [b]} of the records numbered `rows`, as fresh arrays."""
  records = source.records
  if in_arrays(source):
    return records.gather(rows)
  picked = [records[int(row)] for row in rows]
  label = np.array([record['label'] for record in picked], np.int32)
  return {'x': np.stack([record['x'] for record in picked]), 'label': label}


def in_arrays(source: Source) -> bool:
  """Whether the records are arrays, so that a batch is one gather without decoding."""
  return hasattr(source.records, 'gather')


def decoded(source: Source) -> Source:
  """The same source with all records decoded into memory, by one thread per core."""
  if isinstance(source.records, InMemory):
    return source
  x = np.empty((len(source), *source.shape), source[0]['x'].dtype)
  label = np.empty(len(source), np.int32)

  def decode(i):
    record = source.records[i]
    x[i], label[i] = record['x'], record['label']

  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    # Reading the results raises the errors of the threads.
    for _ in pool.map(decode, range(len(source))):
      pass
  return dataclasses.replace(source, records=InMemory(x, label))


def decoded_if_small(source: Source) -> Source:
  """`decoded(source)` where its images fit in MEMORY bytes, else the source unchanged."""
  return decoded(source) if len(source) * int(np.prod(source.shape)) <= MEMORY else source
