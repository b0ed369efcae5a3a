"""Magnitudes of activations and weights during training, with and without EDM2's parts for them.

  python -m experiments.posthoc_ema.magnitudes [--only=all,free] [--examples=96000]

One network, EDM2's in configs/digits.py, one recipe, one seed. `not_forced` omits forced weight
normalization, `free` all weight normalization, `none` every part of `models.magnitude`, including
pixel norm, attention norm and the divisors of silu, sums and concatenations. A result is stored
when its training ends.
"""

import argparse
import json
import pathlib
from unittest import mock

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np

from configs import digits
from eqflow.config import networks, recipes
from eqflow.data import pipeline
from eqflow.models import magnitude
from eqflow.runs import dataset
from eqflow.training import sharding, train_state, train_step
from experiments.equilibrium_matching import results

RESULTS = pathlib.Path(__file__).parent / 'results/magnitudes'
PARTS = ('all', 'not_forced', 'free', 'none')
EVERY = 4_800       # examples between two measurements


def _of_activations(x, axis=-1, eps=1e-4, normalize=magnitude.normalize):
  # Weights are normalized over all axes but the last, activations over one.
  return x if isinstance(axis, tuple) else normalize(x, axis, eps)


WITHOUT = {
    'all': dict(normalize=magnitude.normalize), 'not_forced': dict(normalize=magnitude.normalize),
    'free': dict(normalize=_of_activations),
    'none': dict(normalize=lambda x, axis=-1, eps=0.0: x, silu=nn.silu, lerp=lambda a, b, t=0.5: a + b,
                 cat=lambda a, b, t=0.5: jnp.concatenate([a, b], -1))}


def rms(x: jax.Array) -> jax.Array:
  """The root of the mean square of all of x."""
  return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))


def measured(network, config):
  """params -> {'activations', 'weights': {layer: RMS}}, compiled, on one batch with three sigmas."""
  sigma = jnp.repeat(jnp.array([0.1, 0.5, 2.0]), 32)
  x = pipeline.arrays(dataset.open_source(config))[0][:96]
  z = x + sigma[:, None, None, None] * jax.random.normal(jax.random.key(1), x.shape)
  sigma_data = config.output.sigma_data
  given = z / jnp.sqrt(sigma**2 + sigma_data**2)[:, None, None, None], jnp.log(sigma) / 4

  @jax.jit
  def measure(params):
    _, kept = network.apply({'params': params}, *given, mutable=['intermediates'])
    seen = {name.removeprefix('after_'): rms(value[0])
            for name, value in kept['intermediates'].items() if name.startswith('after_')}
    weights = {jax.tree_util.keystr(path[:-1], simple=True, separator='/'): rms(leaf)
               for path, leaf in jax.tree_util.tree_leaves_with_path(params)
               if jax.tree_util.keystr(path[-1:], simple=True) == 'weight'}
    return {'activations': seen, 'weights': weights}

  return measure


def trained(parts: str, examples: int) -> dict:
  """{'examples': [n], 'losses': [n], 'activations': {layer: [n]}, 'weights': {layer: [n]}}."""
  config = digits.get_config('edm2')
  config.ema.update(dict(stds=(), snapshot_examples=0))
  config.sample.params = 'params'
  recipe, mesh = recipes.recipe(config.lock()), sharding.device_mesh()
  state = train_state.create(recipe.model.init, recipe.optimizer, [], config.seed, mesh)
  step = train_step.make_step(train_step.gradient_of(recipe.objective.loss), recipe.optimizer,
                              recipe.averages.rates, mesh,
                         prepare=recipe.model.prepare if parts == 'all' else None)
  measure = measured(networks.flax_module(config.model, config.data.num_classes), config)
  batches = pipeline.batches(
      dataset.open_source(config), seed=config.seed, batch=config.train.batch, start=0, process_index=0,
      process_count=1, workers=0, flip=False, couple=None)
  found, losses = [], []
  for at in range(0, examples + 1, config.train.batch):
    if at % EVERY == 0:
      found.append(jax.device_get(measure(state.params)))
      losses.append(train_state.means(state)['loss'] if at else float('nan'))
      state = train_state.logged(state)
      print(parts, at, losses[-1], np.mean(list(found[-1]['activations'].values())), flush=True)
    state, _ = step(state, sharding.place_batch(next(batches), mesh))
  columns = jax.tree.map(lambda *values: [float(value) for value in values], *found)
  return {'examples': list(range(0, examples + 1, EVERY)), 'losses': losses[1:], **columns}


def read() -> dict[str, dict]:
  """{parts: stored results}."""
  return {parts: json.loads((RESULTS / f'{parts}.json').read_text()) for parts in PARTS
          if (RESULTS / f'{parts}.json').exists()}


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--only', default=','.join(PARTS), help='parts, separated by commas')
  parser.add_argument('--examples', type=int, default=96_000, help='training examples')
  given = parser.parse_args()
  for parts in given.only.split(','):
    if not (RESULTS / f'{parts}.json').exists():
      with mock.patch.multiple(magnitude, **WITHOUT[parts]):
        results.write(RESULTS / f'{parts}.json', trained(parts, given.examples))


if __name__ == '__main__':
  main()
