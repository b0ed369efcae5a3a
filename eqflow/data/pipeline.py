"""Batches of a run: which record is the k-th, and how it is flipped, depend on (seed, k) alone."""

from collections.abc import Callable
import functools
import multiprocessing
import os
import threading

from absl import flags
import grain
from jaxtyping import Float32, Int, Int32
import numpy as np

from eqflow.data.pairs import Paired
from eqflow.data.records import Source, decoded, gather, in_arrays, wrong_label

# One past the largest example number in a uint32: the iterator ends there.
END = 2**32


def batches(source: Source, *, seed: int, batch: int, start: int = 0, process_index: int = 0,
            process_count: int = 1, workers: int = 0, flip: bool = False,
            couple: Callable | None = None) -> grain.DatasetIterator:
  """This process's rows of the batches of the run, from example number `start` on.

  Each element is {'x': float32 [b, ...], 'label': int32 [b], 'index': uint32 [b]} with
  b = batch // process_count: `index` is k, the number of the example in the run, rows
  process_index::process_count of the global batch. Images are in [-1, 1], with `flip` mirrored left
  to right with probability 1/2; vectors are unchanged. Each epoch is a new permutation of all
  records, and batches may span two epochs. Pairs have their noise, 'eps' [b, ...], which would not
  belong to a mirrored image: `flip` rejects pairs.

  With `couple`, 'eps' = couple(global batch): it runs ahead of time in a thread, so devices do not wait
  for it, and on every process, so that the noise does not depend on their number.

  `workers` processes decode (0: threads here, or nothing but a gather for records in memory); the
  batches do not depend on it. Close the iterator, for example with contextlib.closing. It ends
  where k exceeds uint32. Raises ValueError where process_count does not
  divide batch; a batch with a label that is not a class raises it too.
  """
  _check(source, batch, start, process_index, process_count, flip)
  own = slice(process_index, batch, process_count)
  read = np.arange(batch) if couple else np.arange(batch)[own]
  rows = functools.partial(_rows, source, seed, flip, read)
  if workers:
    rows = functools.partial(_in_worker, rows)
  dataset = grain.MapDataset.range(start, END - batch + 1, batch).map(rows)
  # A gather in memory costs less than passing a batch between threads.
  threads = 0 if workers or in_arrays(source) else min(8, os.cpu_count() or 1)
  dataset = dataset.to_iter_dataset(
      grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
  if workers:
    # Grain reads absl flags in the parent of its workers; outside app.run they are not parsed.
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    # Through pipes: batches in shared memory outlive workers that are killed with their parent.
    dataset = grain.experimental.WithOptionsIterDataset(
        dataset, grain.experimental.DatasetOptions(min_shm_size=END**2))
    dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
  if couple:
    dataset = dataset.map(lambda whole: {
        key: a[own] for key, a in (whole | {'eps': couple(whole)}).items()})
    # Two ahead: the device computes the noise before the step that would occupy it.
    dataset = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=2)
  return iter(dataset)


def record_index(source_length: int, seed: int,
                 k: int | Int[np.ndarray, '...']) -> Int[np.ndarray, '...']:
  """The number of the record that is the k-th of the run, k = 0, 1, ...; one k, or an array."""
  return _of_epoch(source_length, seed, k, 0)


def arrays(source: Source) -> tuple[Float32[np.ndarray, 'n ...'], Int32[np.ndarray, 'n']]:
  """All records in order, in memory: (x float32 [n, ...], images in [-1, 1]; label int32 [n])."""
  records = decoded(source).records
  return _scaled(records.x), records.label


@functools.cache
def _end_with_parent():
  """Makes this worker exit with its parent, even where the parent is killed."""
  parent = multiprocessing.parent_process()
  threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _in_worker(rows, first):
  _end_with_parent()
  return rows(first)


def _rows(source, seed, flip, offsets, first):
  k = first + offsets
  rows = record_index(len(source), seed, k)
  batch = gather(source, rows)
  # Records that are not in arrays were not all looked at before.
  if source.num_classes and (wrong := wrong_label(source, rows, batch['label'])):
    raise ValueError(wrong)
  x = batch['x']
  if flip:
    mirrored = _of_epoch(len(source), seed, k, 1).astype(bool)
    x[mirrored] = x[mirrored, :, ::-1]
  return batch | {'x': _scaled(x), 'index': k.astype(np.uint32)}


def _scaled(x):
  return x.astype(np.float32) / 127.5 - 1 if x.dtype == np.uint8 else x.astype(np.float32)


def _of_epoch(n, seed, k, which):
  """Entry k mod n of the order (which = 0) or of the flips (1) of epoch k div n."""
  epochs, places = np.divmod(k, n)
  picked = np.empty(np.shape(k), np.int64)
  for epoch in range(np.min(epochs), np.max(epochs) + 1):
    here = epochs == epoch
    picked[here] = _epoch(n, seed, epoch)[which][places[here]]
  return picked


@functools.lru_cache(maxsize=4)
def _epoch(n, seed, epoch):
  """(order [n], flips [n]) of one epoch."""
  # RandomState, since numpy guarantees its streams forever: a run may outlive an upgrade.
  random = np.random.RandomState(np.random.MT19937([seed, epoch]))
  return random.permutation(n), random.randint(0, 2, n, np.uint8)


def _check(source, batch, start, process_index, process_count, flip):
  if batch < 1 or process_count < 1 or batch % process_count:
    below = max(batch // max(process_count, 1), 1) * process_count
    raise ValueError(f'batch={batch} is not divisible by process_count={process_count}: all '
                     f'processes take equally many rows; use batch={below}')
  if not 0 <= process_index < process_count:
    raise ValueError(f'process_index={process_index} with process_count={process_count}: give '
                     'a number from 0 to process_count - 1')
  if not 0 <= start <= END - batch:
    raise ValueError(f'start={start}: examples are numbered from 0 to {END} - batch')
  if not len(source):
    raise ValueError(f'the source {source.name!r} has no records')
  if flip and len(source.shape) != 3:
    raise ValueError(f'flip=True mirrors images, but {source.name!r} has records of shape '
                     f'{source.shape}: leave flip off')
  if flip and isinstance(source.records, Paired):
    raise ValueError('flip=True mirrors images, but pairs would lose their noise: leave flip off')
