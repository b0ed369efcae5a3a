"""--mode=pairs: a data set of noise and the samples that a trained model makes of it."""

import json
import math
import pathlib

from eqflow.config import consistency
from eqflow.runs import claim, dataset, generate, restore, room
from eqflow.runs.run import Run
from eqflow.training import progress, train_state


def draw_pairs(run: Run, *, out: pathlib.Path, num_samples: int, seed: int = 0) -> None:
  """Writes num_samples pairs (eps, x) and their labels to the folder `out`.

  Pair i is a function of the model, the seed and i; labels are drawn uniformly. Interrupted, the same
  call continues. Raises ValueError for a stochastic solver, or if `out` has other pairs.
  """
  config, workdir, recipe, _ = run
  classes = config.data.num_classes
  room.check_samples(run, num_samples, '--num_samples')
  consistency.check_pairs(config, recipe.sampling)
  step, models = restore.models(run)
  labels = generate.labels_of(seed, num_samples, classes)
  made = {'config': json.loads(config.to_json_best_effort()), 'step': step, 'num_classes': classes,
          'shape': config.data.shape, 'classes': dataset.class_names(workdir)}
  progress.say(f'drawing {num_samples:,} pairs; the first batch compiles the sampler')
  with claim.locked(out, 'writing to', '--out'):
    if not (out / 'pairs.json').exists():
      room.check_disk(out, num_samples * (8 * math.prod(config.data.shape) + 4), 'pairs')
    norms = generate.write_pairs(recipe.sampling.pair, models, out, labels, seed=seed,
                                 batch=config.sample.batch, made=made)
  before = len(labels) - len(norms)
  print(f'{len(labels):,} pairs of {train_state.called(config.sample.params)} at step {step:,}'
        f'{f", {before:,} of them from an earlier call" if before else ""}\n'
        f'{generate.unsettled(config, norms)}{out}')
