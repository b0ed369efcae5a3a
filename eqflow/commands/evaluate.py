"""--mode=evaluate: distances from samples to data, next to baselines that need no model."""

import json
import time
from typing import Any

import jax
import numpy as np
import tqdm

from eqflow import files
from eqflow.commands import neighbours
from eqflow.data import pipeline
from eqflow.evaluation import report
from eqflow.runs import dataset, generate, restore
from eqflow.runs.run import Run
from eqflow.training import checkpoint, train_state
from eqflow.training.runtime import ledger, watchdog


def evaluate(run: Run, *, neighbours: bool = False, restored: tuple[int, Any] | None = None,
             book: ledger.Ledger | None = None) -> dict[str, dict[str, float]]:
  """{row: {column: number}}: the newest checkpoint's samples and the baselines, against all records.

  Draws config.evaluate.num_samples samples with the labels of the data; images are clipped to
  [-1, 1]. All processes draw; the first compares, and the others return {}. Writes evaluation.json,
  samples.png and samples.npz to workdir. The distances are not FIDs: they are computed in pixels and
  in fixed random features. With `neighbours`, samples are compared with their nearest training records
  too. `restored` is (step, models) to evaluate instead of the newest checkpoint. Wall time is booked in
  `book`, or in a new ledger.
  """
  active = jax.process_index() == 0 and checkpoint.exists(run.workdir)
  with ledger.booked(run.workdir, book, active=active) as book, book.on('evaluate'):
    return _evaluate(run, neighbours, restored, book)


def _evaluate(run, near, restored, book):
  config, workdir, recipe, _ = run
  source = dataset.evaluation_source(run)
  real, label = pipeline.arrays(source)
  with book.on('restore'):
    step, models = restored or restore.models(run)
  book.step = step

  wanted = np.resize(label, config.evaluate.num_samples)
  clock = time.perf_counter()
  # The watchdog covers the samples only: the distances are one host's work, and no device waits.
  with watchdog.watching(workdir, config.train.stuck_seconds, book.pulse, process=jax.process_index(),
                         count=jax.process_count()):
    fake, evaluations, norms = generate.samples(recipe.sampling, models, wanted, seed=config.seed,
                                                 batch=config.sample.batch, beat=book.beat)
  if jax.process_index():
    return {}
  seconds = time.perf_counter() - clock
  fake = np.clip(fake, -1, 1) if fake.ndim == 4 else fake
  generate.check_finite(fake)
  generate.write(workdir / 'samples', fake, wanted, evaluations=evaluations, norms=norms)

  name = f'{workdir.name}, step {step:,}'
  described = report.summary(real)
  rows = {name: report.compare(described, report.summary(fake))}
  baselines = report.compare_baselines(described, real, label if config.data.num_classes > 1 else None)
  rows |= dict(tqdm.tqdm(baselines, unit='baseline', leave=False, disable=None))
  found = dict(step=step, params=config.sample.params, num_samples=len(fake),
               evaluations_per_sample=float(evaluations.mean()), seconds=seconds, rows=rows)
  files.write_text(workdir / 'evaluation.json', json.dumps(found, indent=2) + '\n')
  print(f'\n{len(fake):,} samples of {train_state.called(config.sample.params)} by '
        f'{config.sample.solver.name}, {evaluations.mean():.0f} network evaluations each, in '
        f'{seconds:.1f} s, against {len(real):,} records of {source.name}\n'
        f'{generate.steps_taken(config, evaluations)}{generate.unsettled(config, norms)}', end='')
  if near:
    neighbours.report(config, workdir, fake)
  print(f'\n{report.table(rows)}\n\n{workdir / "samples.png"}', flush=True)
  book.saved(step)
  return rows
