"""--mode=evaluate: samples against data, next to what needs no model."""

import json
import pathlib
import time
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np
import tqdm

from eqflow.commands import neighbours
from eqflow.config import recipes
from eqflow.data import pipeline
from eqflow.evaluation import report
from eqflow.runs import dataset, generate, restore
from eqflow.training import checkpoint
from eqflow.training.runtime import ledger, watchdog


def evaluate(config: ConfigDict, workdir: pathlib.Path, *, neighbours: bool = False,
             restored: tuple[int, Any] | None = None,
             book: ledger.Ledger | None = None) -> dict[str, dict[str, float]]:
  """{row: {column: number}}: the newest checkpoint's samples and the baselines, against all records.

  Draws config.evaluate.num_samples samples with the labels of the data, clipped to [-1, 1] where
  they are images. Of several processes all draw; the first does the rest, and the others return {}.
  Writes evaluation.json, samples.png and samples.npz to workdir. None of the distances is an FID:
  their spaces are pixels and fixed random features. With `neighbours`, the samples' nearest training
  records too; `restored` is (step, models) to take instead of the checkpoint's. Wall time is booked
  in `book`, or in a ledger of this call alone.
  """
  active = jax.process_index() == 0 and checkpoint.exists(workdir)
  with ledger.booked(workdir, book, active=active) as book, book.on('evaluate'):
    return _evaluate(config, workdir, neighbours, restored, book)


def _evaluate(config, workdir, near, restored, book):
  recipe = recipes.recipe(config)
  source = dataset.evaluation_source(config)
  real, label = pipeline.arrays(source)
  with book.on('restore'):
    step, models = restored or restore.models(config, recipe, workdir)
  book.step = step

  wanted = np.resize(label, config.evaluate.num_samples)
  clock = time.perf_counter()
  # What follows the samples is this host's own work, for which nobody waits.
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
  (workdir / 'evaluation.json').write_text(json.dumps(found, indent=2) + '\n')
  print(f'\n{len(fake):,} samples of {config.sample.params!r} by {config.sample.solver.name}, '
        f'{evaluations.mean():.0f} evaluations each, in {seconds:.1f} s, against {len(real):,} '
        f'records of {source.name}\n{generate.steps_taken(config, evaluations)}'
        f'{generate.unsettled(config, norms)}', end='')
  if near:
    neighbours.report(config, workdir, fake)
  print(f'\n{report.table(rows)}\n\n{workdir / "samples.png"}', flush=True)
  book.saved(step)
  return rows
