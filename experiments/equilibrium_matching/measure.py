"""A trained network, its noise, its samples and their distance from the data."""

from collections.abc import Iterator
import functools
import pathlib
from typing import Any, NamedTuple

from jax import numpy as jnp
import numpy as np

from eqflow import arrays, descent, fields, samplers
from eqflow.arrays import Stream
from eqflow.data import pipeline
from eqflow.evaluation import distances, features
from eqflow.runs import dataset
from experiments.equilibrium_matching import models

# Samples for one distance, and the batch in which they are drawn: it fits in a CPU's caches.
COUNT = {'digits': 1_797, 'fashion_mnist': 1_000}
BATCH = {'digits': 120, 'fashion_mnist': 40}


class Training(NamedTuple):
  """One training. labels[i] and noise[i] of sample i depend on the seed and i only."""
  data: str
  config: Any
  recipe: Any
  params: Any
  labels: np.ndarray
  keys: Any
  noise: np.ndarray

  def predict(self, labels: Any) -> fields.Predict:
    """The predictor conditioned on these classes."""
    return fields.bind(self.recipe.model.network(self.params), jnp.asarray(labels))


@functools.lru_cache(maxsize=64)
def load(data: str, row: str, seed: int, runs: pathlib.Path) -> Training:
  """The trained network with labels and noise for one distance."""
  config, recipe, params = models.load(data, row, seed, runs)
  count = COUNT[data]
  keys = arrays.example_keys(seed, jnp.arange(count, dtype=jnp.uint32))
  noise = arrays.noise_like(arrays.fold(keys, Stream.START), jnp.zeros((count, *config.data.shape)))
  own = arrays.fold(keys, Stream.SOLVER)
  return Training(data, config, recipe, params, labels(data), own, np.asarray(noise))


@functools.cache
def records(data: str) -> tuple[np.ndarray, np.ndarray]:
  """(x, label) of all records that samples are compared with."""
  return pipeline.arrays(dataset.open_source(models.config_of(data, 'eqm', 0)))


def labels(data: str) -> np.ndarray:
  """Labels of COUNT[data] samples: the records' if there are as many, else every class in turn."""
  real, label = records(data)
  count = COUNT[data]
  return label if len(real) == count else np.arange(count, dtype=np.int32) % 10


@functools.cache
def _moments(data):
  return distances.moments(space(data)(records(data)[0]))


def space(data: str):
  """x -> features: pixels for the digits, a classifier's last hidden layer for Fashion-MNIST."""
  if data == 'digits':
    return features.pixels
  from experiments.equilibrium_matching import classifier
  return classifier.features


def distance(data: str, x: np.ndarray) -> float | None:
  """The Fréchet distance of samples, clipped to [-1, 1], from all records; None where not finite."""
  if not np.isfinite(x).all():
    return None
  fake = distances.moments(space(data)(np.clip(x, -1, 1)))
  return distances.frechet_distance(_moments(data), fake)


def details(data: str, x: np.ndarray) -> dict[str, float]:
  """Precision, recall, and the median squared distance in pixels to the nearest record."""
  x, (real, _) = np.clip(x, -1, 1), records(data)
  real = real[:10_000]
  manifolds = (distances.manifold(space(data)(each)) for each in (real, x))
  precision, recall = distances.precision_recall(*manifolds)
  near = distances.nearest_distance(features.pixels(x), features.pixels(real))
  return dict(precision=precision, recall=recall, nearest=float(np.median(near)))


def in_batches(model: Training) -> Iterator[np.ndarray]:
  """Sample indices, batch by batch. All batches have the same size, so that the code compiles once.

  The last batch is padded with the first samples: drop them after joining the results.
  """
  size, n = BATCH[model.data], len(model.labels)
  for start in range(0, n, size):
    yield np.arange(start, start + size) % n


def descent_path(model: Training, method: descent.Descent, num_steps: int, *, every: int = 1,
                 z: np.ndarray | None = None) -> np.ndarray:
  """z after 0, every, 2 every, ... steps [k, n, ...]: one descent contains every shorter one."""
  z = model.noise if z is None else z
  parts = []
  for rows in in_batches(model):
    states = descent.descend_path(method, model.predict(model.labels[rows]), z[rows],
                                  num_steps=num_steps)
    parts.append(np.asarray(states[::every]))
  return np.concatenate(parts, axis=1)[:, :len(z)]


def integrated(model: Training, solver: samplers.Solver, grid: np.ndarray,
            z: np.ndarray | None = None) -> np.ndarray:
  """Samples of a solver along a grid of times, from noise or from z."""
  z = model.noise if z is None else z
  return np.concatenate([
      np.asarray(samplers.sample(solver, model.predict(model.labels[rows]), z[rows], grid,
                                 model.keys[rows])) for rows in in_batches(model)])[:len(z)]


def curve(data: str, states: np.ndarray, every: int) -> dict[int, float | None]:
  """{steps: distance} of the states of a descent, without its start."""
  return {every * k: distance(data, x) for k, x in enumerate(states) if k}


def best(curve: dict[Any, float | None]) -> Any:
  """The key of the smallest distance."""
  return min((key for key in curve if curve[key] is not None), key=curve.get)
