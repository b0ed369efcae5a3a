"""--mode=sample and pairs: samples, each a function of the seed and its index alone."""

import collections
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
import functools
import pathlib
from typing import Any

import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Int
from ml_collections import ConfigDict
import numpy as np

from eqflow import arrays, files
from eqflow.arrays import Stream
from eqflow.config.sampling import Sampling
from eqflow.data import pairs
from eqflow.evaluation import images
from eqflow.fields import Model
from eqflow.runs import dataset
from eqflow.runs.run import Run
from eqflow.training import progress, sharding


def labels_of(seed: int, count: int, num_classes: int) -> Int[np.ndarray, 'n']:
  """Labels of samples 0 to count - 1, each drawn uniformly from its own key; zeros for 0 classes."""
  if not num_classes:
    return np.zeros(count, np.int32)
  keys = arrays.fold(arrays.example_keys(seed, jnp.arange(count, dtype=jnp.uint32)), Stream.LABEL)
  return np.asarray(jax.vmap(lambda key: jax.random.randint(key, (), 0, num_classes))(keys))


# The most samples of a queue, in multiples of its slots. At its end, few slots are busy.
_QUEUE = 32


def samples(sampling: Sampling, models: Sequence[Model], labels: Any, *, seed: int, batch: int,
            beat: Callable[[], None] = lambda: None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(samples [n, ...], evaluations [n], norms [n]) with the given labels [n], `batch` at a time.

  If samples converge one by one, each device has its own queue, and the slot of a converged sample is
  refilled. `beat` is called after every batch. Raises ValueError if the batch does not divide by the
  devices.
  """
  mesh, n = sharding.mesh_of(models), len(labels)
  if sampling.refill and n > batch:
    function = _on_each(mesh, sampling, batch)
    # As few queues as possible, of equal length: a queue keeps its noise and samples on the device.
    queues = -(-n // (_QUEUE * batch))
    batch = -(-n // (queues * sharding.parts(mesh))) * sharding.parts(mesh)
  else:
    function = sampling.generate
  parts = []
  for part in in_batches(function, models, labels, seed=seed, batch=batch):
    parts.append(part)
    beat()
  samples, evaluations, norms = (np.concatenate(part) for part in zip(*parts))
  return samples, evaluations, norms


def _on_each(mesh, sampling, batch):
  sharding.check_rows(batch, mesh)
  function = functools.partial(sampling.generate_refilled, slots=batch // sharding.parts(mesh))
  if mesh.size == 1:
    return function
  examples = sharding.by_example(mesh).spec
  return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(P(), examples, examples),
                               out_specs=examples, check_vma=False))


def check_finite(x: np.ndarray) -> None:
  """Raises FloatingPointError if some of the samples [n, ...] are not finite."""
  bad = int((~np.isfinite(x.reshape(len(x), -1)).all(axis=1)).sum())
  if bad:
    raise FloatingPointError(f'{bad:,} of {len(x):,} samples are not finite; check '
                             'config.sample.solver, config.sample.grid and the training log')


def unsettled(config: ConfigDict, norms: np.ndarray) -> str:
  """The line that counts descents above config.sample.threshold; '' if all [n] converged."""
  section = config.sample
  bad = ~(norms < section.threshold)
  if not section.threshold or not bad.any():
    return ''
  return (f'{bad.sum():,} of {len(norms):,} did not converge: after config.sample.num_steps='
          f'{section.num_steps} steps, the median norm of their fields is {np.median(norms[bad]):.3g}, '
          f'above config.sample.threshold={section.threshold:g}; use more steps, or a larger '
          'threshold\n')


def steps_taken(config: ConfigDict, evaluations: np.ndarray) -> str:
  """A histogram of evaluations [n] as lines to print; '' without a threshold: all are equal."""
  if not config.sample.threshold:
    return ''
  least, most = int(evaluations.min()), int(evaluations.max())
  counts, edges = np.histogram(evaluations, np.unique(np.linspace(least, most + 1, 11).round()))
  return ''.join(f'{low:5.0f} to {high - 1:.0f} evaluations {count:8,} '
                 f'{"#" * round(40 * count / counts.max())}\n'
                 for low, high, count in zip(edges, edges[1:], counts))


def in_batches(function: Callable, models: Any, given: Any, *, seed: int, batch: int,
               first: int = 0) -> Iterator[tuple[np.ndarray, ...]]:
  """function(models, keys, given) for samples `first` to n - 1, `batch` at a time, as numpy arrays.

  given is a pytree of arrays [n, ...], mostly labels. The last batch is padded to the one compiled
  shape, and the padding is dropped. Raises ValueError if the batch does not divide by the devices.
  """
  mesh = sharding.mesh_of(models)
  sharding.check_rows(batch, mesh)
  keys = jax.jit(lambda index: arrays.example_keys(seed, index))
  count = len(jax.tree.leaves(given)[0])
  # The cores of a CPU compute two batches at a time faster than one after the other.
  workers = 2 if mesh.size == 1 and mesh.devices.item().platform == 'cpu' else 1
  few = -(-(count - first) // (workers * sharding.parts(mesh))) * sharding.parts(mesh)
  batch = max(1, min(batch, few))

  def one(start):
    index = start + np.arange(batch, dtype=np.uint32)
    whole = lambda a: np.resize(a[start:start + batch], (batch, *a.shape[1:]))
    index, rows = sharding.spread((index, jax.tree.map(whole, given)), mesh)
    found = function(models, keys(index), rows)
    return tuple(sharding.fetch(a)[:count - start] for a in found)

  starts = range(first, count, batch)
  yield from progress.counted(_in_order(one, starts, workers), len(starts), f'batches of {batch} done')


def _in_order(function, starts, workers):
  """function(start) of each start, in order; `workers` of them run at a time."""
  pending = collections.deque()
  with futures.ThreadPoolExecutor(workers) as pool:
    for start in starts:
      pending.append(pool.submit(function, start))
      if len(pending) == workers:
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()


def write_pairs(pair: Callable, models: Sequence[Model], folder: pathlib.Path,
                labels: Int[np.ndarray, 'n'], *, seed: int, batch: int,
                made: dict[str, Any]) -> np.ndarray:
  """Writes (eps, x, label) of pairs 0 to n - 1 to `folder`, after the pairs that exist there.

  `pair` is Sampling.pair. Returns the norms [m] of the new pairs, the last m. `made` describes the
  model and is written next to the pairs. Raises ValueError if the folder contains other pairs,
  FloatingPointError if a sample is not finite.
  """
  norms = [np.zeros(0, np.float32)]

  def blocks(first):
    found = in_batches(pair, models, labels, seed=seed, batch=batch, first=first)
    for eps, x, seen in found:
      check_finite(x)
      norms.append(seen)
      yield eps, x, labels[first:first + len(x)]
      first += len(x)

  pairs.write(folder, made | {'count': len(labels), 'seed': seed}, blocks)
  return np.concatenate(norms)


def picture(x: np.ndarray, labels: np.ndarray, *, title: str = '',
            names: Sequence[str] = ()) -> np.ndarray:
  """uint8 [h, w, 3 or 1]: a grid of the first images, at most 100, or all points in the plane.

  The title says what they are. `names` are the names of the classes, or () for data without labels.
  Points have the colour of their label: of the first one if several are joined.
  """
  if x.ndim == 2:
    label = labels[:, 0] if labels.ndim == 2 else labels
    return images.scatter(x, label, title=title, names=names)
  n = images.fitting(x.shape[1:], most=min(len(x), 100))
  shown = f'{n} of {len(x):,} ' if n < len(x) else ''
  return images.grid(x[:n], title=shown + title, captions=captions(labels[:n], names))


def captions(labels: np.ndarray, names: Sequence[str]) -> list[str]:
  """The classes of each sample by name, joined by '+'; [] for data without labels."""
  known = [*names, 'no class']
  return ['+'.join(known[i] for i in row if i >= 0)
          for row in labels.reshape(len(labels), -1)] if names else []


def class_names(run: Run) -> tuple[str, ...]:
  """The names of the classes: as in the data, or their numbers. () for at most one class."""
  count, names = run.config.data.num_classes, dataset.class_names(run.workdir)
  names = map(files.shown, names) if len(names) == count else map(str, range(count))
  return tuple(names) if count > 1 else ()


def write(path: pathlib.Path, x: np.ndarray, labels: np.ndarray, *, title: str, names: Sequence[str],
          **more: Any) -> None:
  """path.png and path.npz (samples, labels and `more`), each written atomically."""
  images.save_png(path.with_suffix('.png'), picture(x, labels, title=title, names=names))
  save(path.with_suffix('.npz'), samples=x, labels=labels, **more)


def save(path: pathlib.Path, **columns: Any) -> None:
  """np.savez of the arrays to path, written atomically."""
  with files.replacing(path) as file:
    np.savez(file, **columns)
