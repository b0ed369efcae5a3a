"""Straightness of paths and quality in few steps of a flow, of optimal transport, and of a reflow.

Trains the flows of configs/toy.py or configs/digits.py, generates pairs with the first, trains
configs/reflow.py on them, and prints a row for each. It resumes after an interruption. Means and
standard deviations are over samples from other noise, by one trained network each.

  python -m experiments.reflow --data=moons     or digits
"""

import argparse
import pathlib

import jax
from jax import numpy as jnp
import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot as plt
import numpy as np

from configs import digits, reflow, toy
from eqflow import couplings, fields, grids, samplers
from eqflow.commands.pairs import draw_pairs
from eqflow.commands.train import train
from eqflow.config import recipes, tables
from eqflow.data import pipeline
from eqflow.evaluation import distances, features, images, report
from eqflow.runs import dataset, generate, restore
from eqflow.runs.run import run_of
from experiments import ROOT, colours, strips

STEPS = (1, 2, 5, 50)
COUNT = {'moons': 50_000, 'digits': 40_000}


def changed(config, **sections):
  """The config with some keys of its sections replaced."""
  for name, section in sections.items():
    config[name].update(section)
  return config.lock()


def models(data, runs):
  """{row: (run, params)}, trained; a reflow on the pairs of the row before."""
  base = toy if data == 'moons' else digits
  rows = {
      'flow': changed(base.get_config('flow')),
      'optimal transport': changed(
          base.get_config('flow'), loss=dict(coupling=dict(name='optimal_transport'))),
  }
  for i, name in enumerate(('reflow', 'reflow twice') if data == 'moons' else ('reflow',)):
    rows[name] = changed(reflow.get_config(data),
                         data=dict(dir=str(runs / f'{data}_pairs_{i + 1}')))
  found, last = {}, None
  for name, config in rows.items():
    workdir = runs / f'{data}_{name.replace(" ", "_")}'
    if config.data.name == 'pairs':
      draw_pairs(run_of(in_steps(last.config, 50), last.workdir), out=pathlib.Path(config.data.dir),
                 num_samples=COUNT[data])
    run = run_of(config, workdir)
    train(run)
    if name != 'optimal transport':
      last = run
    found[name] = run, restore.restore(run)[1].params
  return found


def in_steps(config, steps):
  return changed(config.copy_and_resolve_references(), sample=dict(num_steps=steps))


def samples(run, params, steps, labels, seed):
  """Samples [n, ...] in `steps` steps with the given labels."""
  recipe = recipes.recipe(in_steps(run.config, steps))
  models = [fields.Model(recipe.model.network, params)]
  return generate.samples(recipe.sampling, models, labels, seed=seed,
                          batch=run.config.sample.batch)[0]


def path_of(run, params, count, num_steps=50):
  """Paths of the deterministic sampler: (states [n, count, ...], times [n])."""
  config, _, recipe, _ = run
  grid = grids.uniform(num_steps)
  labels = jnp.arange(count) % max(config.data.num_classes, 1)
  predict = fields.bind(recipe.model.network(params), labels if config.data.num_classes else None)
  solver = samplers.ddim(recipe.sampling.process, tables.OUTPUTS[config.output.name].function)
  noise = jax.random.normal(jax.random.key(7), (count, *config.data.shape))
  return samplers.sample_path(solver, predict, noise, grid), grid


def row_of(run, params, seeds):
  """{column: 'mean ± std'} of one model."""
  real, label = pipeline.arrays(dataset.evaluation_source(run))
  count = run.config.evaluate.num_samples
  path, grid = path_of(run, params, 1_000)
  row = {'straightness': f'{float(couplings.straightness(path, grid).mean()):.4f}'}
  space = features.random_features if real.ndim == 2 else features.pixels
  moments = distances.moments(space(real))
  for steps in STEPS:
    found = []
    for seed in range(seeds):
      x = samples(run, params, steps, np.resize(label, count), seed)
      x = np.clip(x, -1, 1) if x.ndim == 4 else x
      near = np.sqrt(distances.nearest_distance(features.pixels(x), features.pixels(real)))
      found.append((distances.frechet_distance(moments, distances.moments(space(x))), near.mean()))
    (far, near), (spread, _) = np.mean(found, 0), np.std(found, 0)
    row[f'Fréchet, {steps}'] = f'{far:.3f} ± {spread:.3f}'
    row[f'nearest, {steps}'] = f'{near:.3f}'
  return row


def row_of_data(run):
  """The row of the data: as many records drawn with replacement, and their nearest records."""
  real, _ = pipeline.arrays(dataset.evaluation_source(run))
  space = features.random_features if real.ndim == 2 else features.pixels
  near = np.sqrt(distances.nearest_distance(features.pixels(real))).mean()
  drawn = real[np.random.default_rng(0).integers(0, len(real), run.config.evaluate.num_samples)]
  far = distances.frechet_distance(*(distances.moments(space(x)) for x in (real, drawn)))
  return {'Fréchet, 50': f'{far:.3f}', 'nearest, 50': f'{near:.3f}'}


def draw_moons(found, path):
  figure, axes = plt.subplots(2, len(found), figsize=(3 * len(found), 6), sharex=True, sharey=True,
                              layout='constrained')
  for column, (name, (run, params)) in zip(axes.T, found.items()):
    states = np.asarray(path_of(run, params, 60)[0])
    column[0].plot(*states.transpose(2, 0, 1), color=colours.BLUE, linewidth=0.8, alpha=0.7)
    column[0].plot(*states[0].T, '.', color=colours.GREY, markersize=4, label='noise')
    column[0].plot(*states[-1].T, '.', color=colours.RED, markersize=4, label='sample, 50 steps')
    column[0].set(title=name, aspect='equal', xlim=(-3, 3), ylim=(-3.6, 2.4))
    x = samples(run, params, 1, np.zeros(2_000, np.int32), 0)
    column[1].plot(*x.T, ',', color=colours.BLACK)
    column[1].set(aspect='equal')
  axes[0, 0].set_ylabel('paths from noise to data')
  axes[1, 0].set_ylabel('2,000 samples in one step')
  axes[0, 0].legend(fontsize=8, loc='lower left', frameon=False)
  figure.savefig(path, dpi=100)


def draw_digits(found, path):
  images.save_png(path, strips.pictured({
      f'{name}, {steps} step{"s" * (steps > 1)}': samples(run, params, steps, np.arange(20) % 10, 0)
      for name, (run, params) in found.items() for steps in (1, 50)}))


def main():
  flags = argparse.ArgumentParser()
  flags.add_argument('--data', default='moons', choices=('moons', 'digits'))
  flags.add_argument('--seeds', type=int, default=3)
  given = flags.parse_args()
  found = models(given.data, ROOT / 'runs')
  rows = {name: row_of(*model, given.seeds) for name, model in found.items()}
  rows['data'] = row_of_data(found['flow'][0])
  print(report.table(rows))
  path = pathlib.Path(__file__).parent / f'results/{given.data}.png'
  {'moons': draw_moons, 'digits': draw_digits}[given.data](found, path)
  print(path)


if __name__ == '__main__':
  main()
