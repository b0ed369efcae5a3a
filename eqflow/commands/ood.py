"""--mode=ood: how far inputs are from the data, by the field of a time-independent model."""

import json
import pathlib

from jax.tree_util import Partial
import numpy as np

from eqflow import files, ood
from eqflow.config import consistency
from eqflow.data import pipeline
from eqflow.data.inputs import read
from eqflow.evaluation import detection, distances, features, images, memorization, report
from eqflow.runs import dataset, generate, restore
from eqflow.runs.run import Run
from eqflow.training import progress

# Steps of the descent drop, which costs one evaluation more, for each class.
_STEPS = 10
# The descents that step by step_size times the field, as the drop does; Adam's step_size differs.
_STEPPING = 'gradient_descent', 'nesterov', 'heun_descent'


def detect(run: Run, *, inputs: pathlib.Path) -> dict[str, dict[str, float]]:
  """{score: {column: number}} of the inputs in path, against config.evaluate.split of the data.

  Each score is the minimum over classes. For comparison: the squared distance to the nearest training
  record, which needs no model. In-distribution are the first config.evaluate.num_samples records.
  Writes workdir/ood-<name of the file>.npz, every input's scores, and .json, and prints the table.
  Raises ValueError for a model that is conditioned on time, FileNotFoundError without a checkpoint.
  """
  config, workdir, recipe, _ = run
  consistency.check_detection(config)
  shape = tuple(config.data.shape)
  outside, _ = read(inputs, shape)
  inside = pipeline.arrays(dataset.evaluation_source(run))[0][:config.evaluate.num_samples]
  train = dataset.training_records(config)
  step, model = restore.restore(run)

  both, n = np.concatenate([inside, outside]), len(inside)
  progress.say(f'scoring {len(both):,} records by the field of {config.data.num_classes or 1} classes')
  found = _model_scores(config, recipe, model.params, both)
  progress.say(f'searching {len(train):,} training records for the nearest of each')
  nearest, near = distances.nearest(features.pixels(both), features.pixels(train))
  # Splits may overlap. A record that was trained on has distance 0 to itself; its score is the
  # distance to the nearest other record.
  trained = np.flatnonzero(near[:n] == 0)
  if len(trained):
    near[trained] = memorization.to_other_records(train, nearest[trained], flip=config.data.flip)
  found['nearest_record'] = near

  rows = {name: _row(values[:n], values[n:]) for name, values in found.items() if name != 'class'}
  out = workdir / f'ood-{inputs.stem}'
  generate.save(out.with_suffix('.npz'), **{name: values[n:] for name, values in found.items()},
              **{f'inside_{name}': values[:n] for name, values in found.items()})
  pictures = _draw(out, outside, found['gradient_norm'][n:]) if outside.ndim == 4 else ''
  summary = dict(inputs=str(inputs), step=step, num_inputs=len(outside), num_inside=n, rows=rows)
  files.write_text(out.with_suffix('.json'), json.dumps(summary, indent=2) + '\n')
  some = 'all of them ' if len(trained) == n else f'{len(trained):,} of them '
  known = f', {some}training records' if len(trained) else ''
  print(f'{len(outside):,} inputs of {inputs} against {n:,} records of {config.data.name!r}, split '
        f'{config.evaluate.split!r}{known}, at step {step:,}; a higher score is further from the '
        f'data\n\n{report.table(rows)}\n\n{pictures}{out}.npz, {out}.json')
  return rows


def _model_scores(config, recipe, params, x):
  """{name: [n]}: every score of the model, its minimum over classes, and the class of the minimum."""
  classes, solver = config.data.num_classes, config.sample.solver
  kinds = {'gradient_norm': ood.gradient_norm}
  if solver.name in _STEPPING:
    kinds['descent_drop'] = Partial(ood.descent_drop, step_size=solver.step_size, num_steps=_STEPS)
  energy = recipe.model.energy and recipe.model.energy(params)

  def all_scores(params, keys, z):
    network = recipe.model.network(params)
    rows = [ood.over_classes(kind, network, z, num_classes=classes) for kind in kinds.values()]
    if energy is not None:
      rows.append(ood.over_classes(ood.energy_at, energy, z, num_classes=classes))
    return rows[0].argmin(0), *(row.min(0) for row in rows)

  parts = generate.in_batches(all_scores, params, x, seed=0, batch=config.sample.batch)
  names = ['class', *kinds, *(['energy'] if energy is not None else [])]
  return dict(zip(names, (np.concatenate(part) for part in zip(*parts))))


def _draw(out, x, scores):
  """Writes <out>.png, the inputs in the order of their scores; a line that says so."""
  # At equal distances in this order: the first is the nearest to the data, and the last the farthest.
  shown = np.linspace(0, len(x) - 1, images.fitting(x.shape[1:], most=min(len(x), 100))).round()
  order = np.argsort(scores)[shown.astype(int)]
  images.save_png(out.with_suffix('.png'), images.grid(
      x[order], title='inputs by the norm of the field, from near the data to far',
      captions=[f'{score:.3g}' for score in scores[order]]))
  return f'{len(order):,} inputs in the order of their gradient_norm: {out}.png\n'


def _row(inside, outside):
  quantiles = {f'{round(100 * q)} %': float(np.quantile(outside, q)) for q in (0.05, 0.5, 0.95)}
  inside_median = {'inside, 50 %': float(np.median(inside))}
  return {'AUROC': detection.auroc(inside, outside)} | inside_median | quantiles
