"""--mode=evaluate: distances from samples to data, next to baselines that need no model."""

import json
import time
from typing import Any

import jax
import numpy as np

from eqflow import files
from eqflow.commands import nearest
from eqflow.config import consistency
from eqflow.data import pipeline
from eqflow.evaluation import report
from eqflow.runs import dataset, generate, restore, room
from eqflow.runs.run import Run
from eqflow.training import checkpoint, progress, train_state
from eqflow.training.runtime import ledger, watchdog


def evaluate(run: Run, *, neighbours: bool = False, restored: tuple[int, Any] | None = None,
             book: ledger.Ledger | None = None, few: bool = False) -> dict[str, dict[str, float]]:
  """{row: {column: number}}: the newest checkpoint's samples and the baselines, against all records.

  Draws config.evaluate.num_samples samples with the labels of the data; images are clipped to
  [-1, 1]. All processes draw; the first compares, and the others return {}. Writes evaluation.json,
  samples.png and samples.npz to workdir. The distances are not FIDs: they are computed in pixels and
  in fixed random features. With `neighbours`, samples are compared with their nearest training records
  too. `restored` is (step, models) to evaluate instead of the newest checkpoint. Wall time is booked in
  `book`, or in a new ledger. Fewer than 8 records raise ConfigError; with `few` they are not evaluated.
  """
  active = jax.process_index() == 0 and checkpoint.exists(run.workdir)
  with ledger.booked(run.workdir, book, active=active) as book, book.on('evaluate'):
    return _evaluate(run, neighbours, restored, book, few)


def _evaluate(run, neighbours, restored, book, few):
  config, workdir, recipe, _ = run
  room.check_samples(run, config.evaluate.num_samples, 'evaluate.num_samples')
  source = dataset.evaluation_source(run, few=few)
  if len(source) < consistency.FEWEST:
    print(f'not evaluated: {source.name} has {len(source)} records, and evaluation needs '
          f'{consistency.FEWEST} or more', flush=True)
    return {}
  progress.say(f'reading {len(source):,} records of {source.name}')
  real, label = pipeline.arrays(source)
  with book.on('restore'):
    step, models = restored or restore.models(run)
  book.step = step

  wanted = np.resize(label, config.evaluate.num_samples)
  progress.say(f'sampling {len(wanted):,} samples; the first batch compiles the sampler')
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
  sampled = f'samples of {train_state.called(config.sample.params)}, step {step:,}'
  names = generate.class_names(run)
  generate.write(workdir / 'samples', fake, wanted, title=sampled, names=names,
                 evaluations=evaluations, norms=norms)
  print(f'\n{len(fake):,} {sampled}, by {config.sample.solver.name}, {evaluations.mean():.0f} network '
        f'evaluations each, in {seconds:.1f} s, against {len(real):,} records of {source.name}\n'
        f'{generate.steps_taken(config, evaluations)}{generate.unsettled(config, norms)}'
        f'{report.LEGEND}\n{_unequal(fake, real)}', flush=True)
  if neighbours:
    nearest.report(config, workdir, fake, generate.captions(wanted, names))

  rows, ours = {}, f'{workdir.name}, step {step:,}'
  label = label if config.data.num_classes > 1 else None
  progress.say('computing the distances of samples, and of baselines that need no model')
  for name, row in report.compare_all({ours: fake}, real, label):
    rows[name] = row
    print(report.table({name: row}, head=len(rows) == 1, least=max(len(ours), 22)), flush=True)
  found = dict(step=step, params=config.sample.params, num_samples=len(fake),
               evaluations_per_sample=float(evaluations.mean()), seconds=seconds, rows=rows)
  files.write_text(workdir / 'evaluation.json', json.dumps(found, indent=2) + '\n')
  print(f'\n{workdir / "samples.png"}', flush=True)
  book.saved(step)
  return rows


def _unequal(fake, real):
  """A line to print if there are more or fewer samples than records; ''  if they are equally many."""
  return '' if len(fake) == len(real) else (
      f'a distance falls with the number of samples, and baselines have {len(real):,}: to compare with '
      f'them, use --config.evaluate.num_samples={len(real)}\n')
