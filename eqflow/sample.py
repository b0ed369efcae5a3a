"""--mode=sample: a picture and an npz of samples, each a function of the seed and its index alone."""

import os
import pathlib
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Int, Key
import numpy as np

from eqflow.build import Recipe
from eqflow.evaluation import images
from eqflow.training import sharding


def key_of(seed: int, index: Any) -> Key[Array, '']:
  """The key of sample `index`: its noise, its label and its solver's noise are folded from it."""
  return jax.random.fold_in(jax.random.key(np.uint32(seed)), index)


def labels_of(seed: int, count: int, num_classes: int) -> Int[np.ndarray, 'n']:
  """Labels of samples 0 to count - 1, each drawn uniformly from its own key; zeros for 0 classes."""
  if not num_classes:
    return np.zeros(count, np.int32)
  def one(index):
    return jax.random.randint(jax.random.fold_in(key_of(seed, index), 1), (), 0, num_classes)
  return np.asarray(jax.vmap(one)(jnp.arange(count, dtype=jnp.uint32)))


def draw(recipe: Recipe, params: Any, labels: Int[np.ndarray, 'n'], *, seed: int,
         batch: int) -> tuple[np.ndarray, np.ndarray]:
  """(samples [n, ...], evaluations [n]) with the given labels [n], `batch` at a time.

  The last batch is padded to the one compiled shape. Raises ValueError where the batch does not
  divide by the devices.
  """
  mesh = sharding.device_mesh()
  if batch < 1 or batch % mesh.size:
    raise ValueError(f'config.sample.batch={batch} does not divide by {mesh.size} device(s): '
                     f'choose a multiple of {mesh.size}')
  keys = jax.jit(jax.vmap(lambda index: key_of(seed, index)))
  samples, evaluations = [], []
  for start in range(0, len(labels), batch):
    index = start + np.arange(batch, dtype=np.uint32)
    place = lambda a: jax.device_put(a, sharding.by_example(mesh))
    label = place(np.resize(labels[start:start + batch], batch).astype(np.int32))
    z, steps = recipe.draw(params, keys(place(index)), label)
    samples.append(np.asarray(z))
    evaluations.append(np.asarray(steps))
  count = len(labels)
  return np.concatenate(samples)[:count], np.concatenate(evaluations)[:count]


def picture(x: np.ndarray, label: np.ndarray, *, most: int = 100) -> np.ndarray:
  """uint8 [h, w, 3 or 1]: a grid of the first `most` images, or all points in the plane."""
  return images.scatter(x, label) if x.ndim == 2 else images.grid(x[:most])


def write(path: pathlib.Path, x: np.ndarray, label: np.ndarray, **more: Any) -> None:
  """path.png and path.npz (samples, labels and `more`), each whole or not at all."""
  images.save_png(path.with_suffix('.png'), picture(x, label))
  partial = path.with_suffix('.partial.npz')
  np.savez(partial, samples=x, labels=label, **more)
  os.replace(partial, path.with_suffix('.npz'))
