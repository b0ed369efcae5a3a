"""A data set: numbered records {'x', 'label'} of one shape.

Pairs of noise and data also have 'eps', with the shape of x. What identifies a data set: identity.py.
"""

from collections.abc import Mapping, Sequence
import concurrent.futures
import dataclasses
import hashlib
import os
from typing import NamedTuple, Protocol, runtime_checkable

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


class Part(NamedTuple):
  """What a data set consists of, in order: a file, or a record of arrays. See identity.py."""

  name: str     # the path below the folder of the data, or 'record 7'
  label: int    # -1 for a file of several records
  size: int     # bytes
  digest: str   # half of the SHA-256 of the content, in hexadecimal


@dataclasses.dataclass(frozen=True)
class Source:
  """Records at random access: source[i] = {'x': uint8 [h, w, c] or float32, 'label': int}.

  `records` returns these dicts, `shape` is the shape of x, and `num_classes` is 0 for data without
  labels. `classes` names the classes, if they have names. `left_out` has {file: reason} of each file
  that is not read.
  """

  records: Records
  shape: tuple[int, ...]
  num_classes: int
  name: str
  classes: tuple[str, ...] = ()
  left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __len__(self):
    return len(self.records)

  def __getitem__(self, i):
    return self.records[i]


@dataclasses.dataclass(frozen=True, eq=False)
class InMemory:
  """Records in two arrays, x [n, ...] and label int32 [n], so that a batch is one gather.

  `files` lists the file of each record, if each had one.
  """

  x: np.ndarray
  label: np.ndarray
  files: Sequence[Part] = ()

  def __len__(self):
    return len(self.x)

  def __getitem__(self, i):
    return {'x': self.x[i], 'label': int(self.label[i])}

  def gather(self, rows: Int[np.ndarray, 'b']) -> Batch:
    """The records numbered `rows`, as fresh arrays."""
    return {'x': self.x[rows], 'label': self.label[rows]}

  def labels(self, rows: Int[np.ndarray, 'b']) -> Labels:
    """The labels of the records numbered `rows`."""
    return self.label[rows]

  def parts(self) -> Sequence[Part]:
    """The files; without them, the records."""
    return self.files or [
        Part(f'record {i}', int(label), x.nbytes,
             hashlib.sha256(np.ascontiguousarray(x)).hexdigest()[:32])
        for i, (x, label) in enumerate(zip(self.x, self.label))]


def gather(source: Source, rows: Int[np.ndarray, 'b']) -> Batch:
  """{'x': [b, ...], 'label': int32 [b]} of the records numbered `rows`, as fresh arrays."""
  records = source.records
  if in_arrays(source):
    return records.gather(rows)
  picked = [records[int(row)] for row in rows]
  label = np.array([record['label'] for record in picked], np.int32)
  return {'x': np.stack([record['x'] for record in picked]), 'label': label}


def wrong_label(source: Source, rows: Int[np.ndarray, 'b'] | None = None,
                label: Labels | None = None) -> str:
  """'record 7 ... has the label -1, ...' if a label of these rows is not in [0, num_classes), else ''.

  By default it looks at all labels in arrays; of other records at a thousand, spread evenly.
  """
  if rows is None:
    n = len(source)
    rows = np.arange(n) if in_arrays(source) else np.unique(np.linspace(0, n - 1, 1_000).astype(int))
    label = source.records.labels(rows)
  outside = np.flatnonzero((label < 0) | (label >= source.num_classes))
  if not len(outside):
    return ''
  return (f'record {rows[outside[0]]} of {source.name} has the label {label[outside[0]]}, which is not '
          f'a class from 0 to {source.num_classes - 1} ({len(outside):,} of {len(rows):,} labels are '
          'not)')


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
  return dataclasses.replace(source, records=InMemory(x, label, getattr(source.records, 'files', ())))


def decoded_if_small(source: Source) -> Source:
  """`decoded(source)` where its images fit in MEMORY bytes, else the source unchanged."""
  return decoded(source) if len(source) * int(np.prod(source.shape)) <= MEMORY else source
