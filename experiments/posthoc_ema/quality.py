"""Distance by EMA width, for two learning rates and two lengths of training.

  python -m experiments.posthoc_ema.quality --data=digits [--seeds=0,1] [--runs=runs]

The learning rate decays as an inverse square root, which does not depend on the length: the first half
of a run is a run of half the length, so both lengths are reconstructed from the snapshots of one run.
It resumes after an interruption; `python -m experiments.posthoc_ema.figures` draws the results.
"""

import argparse
import pathlib

import jax
from ml_collections import ConfigDict

from configs import digits, fashion_mnist
from eqflow.commands.train import train
from eqflow.fields import Model
from eqflow.config import recipes
from eqflow.runs import generate, identity
from eqflow.runs.run import run_of
from eqflow.training import snapshots
from experiments import ROOT
from experiments.equilibrium_matching import measure, results

RESULTS = pathlib.Path(__file__).parent / 'results'
SEEDS = 0, 1, 2
STDS = 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25
# Snapshots a run; an even number, since the half of a run needs a snapshot.
SNAPSHOTS = 60
# The config and its variant, examples of the longer run, and learning rates.
DATA = {'digits': (digits, 'edm', 192_000, (0.0015, 0.006)),
        'fashion_mnist': (fashion_mnist, 'flow', 122_880, (0.001, 0.004))}


def config_of(data: str, rate: float, seed: int) -> ConfigDict:
  """The locked config of one training, with a warmed-up inverse square root learning rate."""
  configs, variant, examples, _ = DATA[data]
  config = configs.get_config(variant)
  config.seed = seed
  config.optimizer.update(ConfigDict(dict(rate=rate, warmup_examples=0, schedule=dict(
      name='inverse_square_root', decay_examples=examples // 6, rampup_examples=3_200))))
  config.ema.update(ConfigDict(dict(
      decays=(), stds=(0.05, 0.1), snapshot_examples=examples // SNAPSHOTS)))
  config.sample.params = '0.1'
  config.train.num_examples = examples
  config.train.sample_examples = 10 * examples
  config.train.checkpoint_examples = examples // 2
  config.train.keep_checkpoints = 1
  return config.lock()


def distances(data: str, config: ConfigDict, folder: pathlib.Path, examples: int) -> dict[str, float]:
  """{std: distance} of the averages of that run after `examples`."""
  recipe = recipes.recipe(config)
  like = jax.eval_shape(recipe.model.init, jax.random.key(0))
  made = snapshots.plan(folder / 'snapshots', examples, STDS, like=like, run=identity.identity(config))
  found = {}
  for std, params in snapshots.reconstruct(made, like).items():
    models = [Model(recipe.model.network, jax.device_put(params))]
    x, _, _ = generate.samples(recipe.sampling, models, measure.labels(data), seed=config.seed,
                               batch=measure.BATCH[data])
    found[repr(std)] = measure.distance(data, x)
  return found


def path_of(data: str, rate: float, seed: int) -> pathlib.Path:
  """The file with the distances of one training, {examples: {std: distance}}."""
  return RESULTS / data / f'{rate}_{seed}.json'


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--data', default='digits', choices=DATA)
  parser.add_argument('--seeds', default='0,1,2', help='seeds of training')
  parser.add_argument('--runs', default=str(ROOT / 'runs'), help='folder of the trained networks')
  given = parser.parse_args()
  *_, examples, rates = DATA[given.data]
  for seed in map(int, given.seeds.split(',')):
    for rate in rates:
      target = path_of(given.data, rate, seed)
      if target.exists():
        continue
      config = config_of(given.data, rate, seed)
      folder = pathlib.Path(given.runs) / f'posthoc_ema/{given.data}/{rate}_{seed}'
      train(run_of(config, folder))
      found = {at: distances(given.data, config, folder, at) for at in (examples // 2, examples)}
      results.write(target, found)
      print(target.relative_to(RESULTS), found, flush=True)


if __name__ == '__main__':
  main()
