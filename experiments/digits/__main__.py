"""Trains the variants of configs/digits.py, evaluates each with several seeds, prints one table.

It resumes: a finished variant is only evaluated again. Each row has the mean and the standard
deviation over sets of 1,797 samples with other noise from one trained network. The spread between
trainings is larger and is not measured here.

  python -m experiments.digits --variants=eqm,flow --seeds=3
"""

import argparse

import jax
import numpy as np

from configs import digits
from eqflow.commands.train import train
from eqflow.data import pipeline
from eqflow.evaluation import report
from eqflow.runs import dataset, generate, restore
from eqflow.runs.run import run_of
from experiments import ROOT


def measured(variant, seeds):
  """{column: 'mean ± std'} of a variant's samples against all records."""
  config = digits.get_config(variant).lock()
  workdir = ROOT / f'runs/digits_{variant}'
  run = run_of(config, workdir)
  train(run)
  _, models = restore.models(run)
  real, label = pipeline.arrays(dataset.open_source(config))
  rows, described = [], report.summary(real)
  for seed in range(seeds):
    x, evaluations, _ = generate.samples(run.recipe.sampling, models, label, seed=seed,
                                         batch=config.sample.batch)
    row = report.compare(described, report.summary(np.clip(x, -1, 1)))
    rows.append(row | {'evaluations': evaluations.mean()})
  column = lambda name: np.array([row[name] for row in rows])
  cells = {name: f'{column(name).mean():.3f} ± {column(name).std():.3f}' for name in rows[0]}
  return cells | {'evaluations': f'{column("evaluations").mean():.0f}'}


def main():
  flags = argparse.ArgumentParser()
  flags.add_argument('--variants', default=','.join(digits.VARIANTS))
  flags.add_argument('--seeds', type=int, default=3)
  given = flags.parse_args()
  rows = {}
  for variant in given.variants.split(','):
    rows[variant] = measured(variant, given.seeds)
    print(report.table(rows), flush=True)
  print(f'\non {jax.device_count()} {jax.devices()[0].device_kind} device(s)')


if __name__ == '__main__':
  main()
