"""The cost of two power averages: time of a training step compared with none, bytes of the state.

  python -m experiments.posthoc_ema.overhead [--variant=eqm]
"""

import argparse
import time

import jax
import numpy as np

from configs import digits
from eqflow.config import recipes
from eqflow.data import pipeline
from eqflow.runs import dataset
from eqflow.training import sharding, train_state, train_step

ROUNDS, STEPS = 30, 20


def prepared(variant, stds):
  """(compiled step, first state) of configs/digits.py with these averages only."""
  config = digits.get_config(variant)
  config.ema.update(dict(decays=(), stds=stds))
  config.sample.params = 'params'
  recipe, mesh = recipes.recipe(config.lock()), sharding.device_mesh()
  state = train_state.create(recipe.model.init, recipe.optimizer, recipe.averages.names, 0, mesh,
                       histogram=recipe.objective.histogram)
  return train_step.make_step(train_step.gradient_of(recipe.objective.loss), recipe.optimizer,
                              recipe.averages.rates, mesh,
                              measure=recipe.objective.measure, prepare=recipe.model.prepare), state


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--variant', default='eqm', help='variant of configs/digits.py')
  variant = parser.parse_args().variant
  config, mesh = digits.get_config(variant), sharding.device_mesh()
  batch = next(pipeline.batches(dataset.open_source(config), seed=0, batch=config.train.batch, start=0,
                                process_index=0, process_count=1, workers=0, flip=False, couple=None))
  batch = sharding.place_batch(batch, mesh)
  made = {name: prepared(variant, stds) for name, stds in (('none', ()), ('two', (0.05, 0.1)))}
  states = {name: state for name, (_, state) in made.items()}
  size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
  extra = (size(states['two']) - size(states['none'])) / size(states['two'].params)

  seconds = {name: [] for name in made}
  for i in range(ROUNDS + 1):
    for name, (step, _) in made.items():
      clock = time.perf_counter()
      for _ in range(STEPS):
        states[name], health = step(states[name], batch)
      jax.block_until_ready(health)
      # The first round compiles.
      seconds[name] += [(time.perf_counter() - clock) / STEPS] if i else []
  ratio = np.divide(seconds['two'], seconds['none'])
  low, middle, high = np.quantile(ratio, (0.25, 0.5, 0.75))
  print(f'{variant}: {1e3 * np.median(seconds["none"]):.2f} ms a step without averages; two take '
        f'{100 * (middle - 1):+.1f} % (quartiles {100 * (low - 1):+.1f}, {100 * (high - 1):+.1f}), and '
        f'{extra:.3f} more trees of parameters')


if __name__ == '__main__':
  main()
