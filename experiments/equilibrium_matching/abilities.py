"""What a field can do besides sampling: OOD detection, composition of classes, continuous batching."""

import base64
import time as clock

from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np

from eqflow import arrays, descent, fields, grids, guidance, ood, samplers
from eqflow.arrays import Stream
from eqflow.data import pipeline, sources
from eqflow.evaluation import detection, distances, features
from eqflow.runs import dataset
from experiments.equilibrium_matching import descents, flows, measure

PAIRS = ((0, 6), (1, 7), (3, 8), (4, 9), (5, 2))
SCORES = {
    'norm': ood.gradient_norm,
    'drop': Partial(ood.descent_drop, step_size=0.006, num_steps=10),
}


def outside(inside: np.ndarray, seed: int) -> dict[str, np.ndarray]:
  """{name: images [n, 8, 8, 1]} that are out of distribution, the first five far from the digits."""
  rng, n = np.random.default_rng(seed), len(inside)
  other = inside[rng.permutation(n)]
  return {
      'constants': np.broadcast_to(rng.uniform(-1, 1, (n, 1, 1, 1)), inside.shape),
      'uniform noise': rng.uniform(-1, 1, inside.shape),
      'shuffled': rng.permuted(inside.reshape(n, -1), axis=1).reshape(inside.shape),
      'inverted': -inside,
      'Fashion-MNIST, 8x8': clothes(n),
      'flipped left to right': inside[:, :, ::-1],
      'flipped upside down': inside[:, ::-1],
      'rotated by 90°': np.rot90(inside, axes=(1, 2)),
      'shifted by a pixel': np.concatenate([np.full_like(inside[:, :, :1], -1), inside[:, :, :-1]], 2),
      'mean of two digits': (inside + other) / 2,
      '25 % of another digit': 0.75 * inside + 0.25 * other,
      '5 % noise': 0.95 * inside + 0.05 * rng.standard_normal(inside.shape),
  }


def clothes(n: int) -> np.ndarray:
  """The first n test images of Fashion-MNIST in [-1, 1], padded by 2 and averaged 4 by 4."""
  x, _ = pipeline.arrays(sources.load('fashion_mnist', split='test', data_dir=None))
  x = np.pad(x[:n], ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=-1)
  return x.reshape(n, 8, 4, 8, 4, 1).mean((2, 4))


def detected(model: measure.Training, row: str) -> dict:
  """{set: {score: AUROC}} against held-out digits. Classes are unknown: min and mean over all ten."""
  train, inside = (pipeline.arrays(dataset.open_source(model.config, split=split))[0]
                   for split in ('train', 'heldout'))
  sets = {'inside': inside, 'training digits': train[:len(inside)],
          **outside(inside, model.config.seed)}
  found = {name: _scores(model, x.astype(np.float32), train) for name, x in sets.items()}
  # A record is its own nearest neighbour.
  found['training digits']['nearest'] = np.sqrt(distances.nearest_distance(
      features.pixels(train)))[:len(inside)]
  return {name: {score: detection.auroc(found['inside'][score], values)
                 for score, values in row.items()}
          for name, row in found.items() if name != 'inside'}


def _scores(model, x, train):
  network = model.recipe.model.network(model.params)
  found = {'nearest': np.sqrt(distances.nearest_distance(features.pixels(x), features.pixels(train)))}
  for name, score in SCORES.items():
    values = np.concatenate([
        np.asarray(ood.over_classes(score, network, x[i:i + 99], num_classes=10))
        for i in range(0, len(x), 99)], axis=1)
    found |= {f'{name}, min': values.min(0), f'{name}, mean': values.mean(0)}
  return found


def composed(model: measure.Training, row: str) -> dict:
  """{a+b: norms, pictures}: descents from noise of f_a, f_b and (f_a + f_b)/2.

  norms[x][y] is the mean |f_y| over the samples x: of class a, of class b, or of `both`.
  """
  network, found = model.recipe.model.network(model.params), {}
  z = model.noise[:100]
  for a, b in PAIRS:
    of = {str(y): fields.bind(network, jnp.full(len(z), y)) for y in (a, b)}
    of['both'] = guidance.added(list(of.values()), [0.5, 0.5])
    ends = {name: descent.descend(descent.gradient_descent(descents.STEP), field, z, num_steps=130)
            for name, field in of.items()}
    found[f'{a}+{b}'] = dict(
        norms={name: {y: float(ood.gradient_norm(field, end).mean()) for y, field in of.items()}
               for name, end in ends.items()},
        pictures={name: pack(end[:10]) for name, end in ends.items()})
    energy = model.recipe.model.energy
    energy = energy and energy(model.params)
    if energy:
      found[f'{a}+{b}']['energies'] = {
          name: {str(y): float(energy(end, jnp.zeros(len(z)), jnp.full(len(z), y)).mean())
                 for y in (a, b)} for name, end in ends.items()}
  return found


def pictured(model: measure.Training, row: str) -> dict:
  """Ten samples by the row's own sampler, from pure noise and from partly noised records."""
  clean = measure.records(model.data)[0][:10]
  few = model._replace(labels=measure.records(model.data)[1][:10], noise=model.noise[:10],
                       keys=model.keys[:10])
  predict, found = few.predict(few.labels), {'clean': pack(clean)}
  for level in (*flows.LEVELS, 1.0):
    z = ((1 - level) * clean + level * few.noise).astype(np.float32)
    if row == 'eqm':
      ends = dict(threshold=descent.descend_until(
          descent.gradient_descent(descents.STEP), predict, z, max_steps=250,
          threshold=descents.threshold_of(model))[0])
    else:
      solver = samplers.ddim(*flows.process_and_output(model))
      ends = {name: samplers.sample(solver, predict, z, grids.uniform(50, start=start))
              for name, start in (('at_1', 1.0), ('at_level', level))}
    found[level] = {'start': pack(z), **{name: pack(end) for name, end in ends.items()}}
  return found


def pack(x: np.ndarray) -> dict:
  """Images in [-1, 1] as bytes for a JSON file."""
  levels = np.round(127.5 * np.clip(np.asarray(x), -1, 1) + 127.5).astype(np.uint8)
  return dict(shape=levels.shape, bytes=base64.b64encode(levels.tobytes()).decode())


def unpack(packed: dict) -> np.ndarray:
  """The images in [-1, 1]: the inverse of `pack`."""
  levels = np.frombuffer(base64.b64decode(packed['bytes']), np.uint8)
  return levels.reshape(packed['shape']).astype(np.float32) / 127.5 - 1


def timed(model: measure.Training, row: str) -> dict:
  """Seconds for 10,000 samples stopped at norm 3.5, by refilled slots and by whole batches.

  Refilling saves fractions of the evaluations, of CPU time and of wall time. Wall time means
  nothing on a machine with other work.
  """
  n, slots = 10_000, measure.BATCH[model.data]
  keys = arrays.example_keys(0, jnp.arange(n, dtype=jnp.uint32))
  z = arrays.noise_like(arrays.fold(keys, Stream.START), jnp.zeros((n, *model.config.data.shape)))
  labels = jnp.asarray(np.resize(model.labels, n))
  network = model.recipe.model.network(model.params)
  solver, threshold = descent.gradient_descent(descents.STEP), descents.threshold_of(model)

  def refilled(max_steps):
    return np.asarray(descent.descend_refilled(
        solver, network, z, labels, slots=slots, max_steps=max_steps, threshold=threshold)[1])

  def batches(max_steps):
    # The last batch is filled up, so that all have one shape.
    parts = [np.arange(i, i + slots) % n for i in range(0, n, slots)]
    return np.concatenate([np.asarray(descent.descend_until(
        solver, fields.bind(network, labels[rows]), z[rows], max_steps=max_steps,
        threshold=threshold)[1]) for rows in parts])[:n]

  found = {}
  for name, function in (('refilled', refilled), ('batches', batches)):
    function(2)
    wall, cpu = clock.perf_counter(), clock.process_time()
    steps = function(250)
    found[name] = dict(wall=clock.perf_counter() - wall, cpu=clock.process_time() - cpu,
                       evaluations=int(steps.sum()))
  # A batch runs until its slowest sample has converged.
  longest = np.resize(steps, (-(-n // slots), slots)).max(1)
  found['batches']['evaluations'] = int(longest.sum()) * slots
  saved = {name: 1 - found['refilled'][name] / found['batches'][name]
           for name in ('evaluations', 'cpu', 'wall')}
  return found | dict(saved=saved)
