"""The time of a training step with an explicit energy, compared with the step of a plain field.

The network and the batch of the digits, the whole compiled step with optimizer and EMA. Both run
alternately in one process; the median ratio of the pairs is printed with its quartiles.

  python -m experiments.energies              wall time on all cores
  python -m experiments.energies --cpu        CPU time, for a machine with other work
"""

import argparse
import contextlib
import time

import jax
import numpy as np

from configs import digits
from eqflow.config import recipes
from eqflow.data import pipeline
from eqflow.runs import dataset
from eqflow.training import sharding, train_state, train_step
from experiments.speed import pairs


def stepping(kind):
  """A function that takes `count` training steps with the energy of that name and waits for them."""
  config = digits.get_config('eqm')
  config.energy.name, config.model.final_scale = kind, 0.02
  recipe, mesh = recipes.recipe(config.lock()), sharding.device_mesh()
  source = dataset.open_source(config)
  with contextlib.closing(pipeline.batches(source, seed=0, batch=config.train.batch)) as batches:
    batch = sharding.place_batch(next(batches), mesh)
  step = train_step.make_step(train_step.gradient_of(recipe.objective.loss), recipe.optimizer,
                              recipe.averages.rates, mesh)
  at = train_state.create(recipe.model.init, recipe.optimizer, recipe.averages.names, 0, mesh)
  state = [at]

  def take(count=10):
    for _ in range(count):
      state[0], health = step(state[0], batch)
    jax.block_until_ready(health)

  return take


def main():
  flags = argparse.ArgumentParser(description=__doc__)
  flags.add_argument('--count', type=int, default=21, help='pairs of ten steps each')
  flags.add_argument('--cpu', action='store_true', help='measure CPU time instead of wall time')
  given = flags.parse_args()
  if given.cpu:
    pairs.time.perf_counter = time.process_time
  plain = stepping('none')
  print(f'on {jax.devices()[0].device_kind}, jax {jax.__version__}\n')
  print('| energy | step time / plain step time | quartiles | ms a step |\n|---|---|---|---|')
  for kind in ('dot', 'squared_norm'):
    first, second = pairs.pairs(plain, stepping(kind), given.count)
    low, middle, high = np.percentile(second / first, (25, 50, 75))
    print(f'| {kind} | {middle:.2f} | {low:.2f} to {high:.2f} | {np.median(second) * 100:.1f} |',
          flush=True)


if __name__ == '__main__':
  main()
