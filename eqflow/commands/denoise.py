"""--mode=denoise: inputs that are partly noise, carried to the data from where they stand.

A field that is blind to time is descended from any input, however much noise it holds; a model that is
told the time can only finish what it is told the noise of.
"""

import pathlib

from ml_collections import ConfigDict
import numpy as np

from eqflow import arrays
from eqflow.arrays import Stream
from eqflow.config import recipes
from eqflow.config.sampling import Sampling, scale_of
from eqflow.data.inputs import classes, read
from eqflow.evaluation import images
from eqflow.mix import mix
from eqflow.runs import composition, generate


def denoise(config: ConfigDict, workdir: pathlib.Path, *, inputs: pathlib.Path, seed: int = 0,
            noise: float | None = None, labels: list[str] | None = None,
            weights: list[str] | None = None, others: list[str] | None = None) -> None:
  """Writes workdir/denoised-seed<seed>.npz and .png of the inputs in path, each carried to the data.

  With `noise`, a time t, input i is first mixed to alpha x + sigma eps, eps the noise of sample i of
  the seed; at the first time of a run's samples nothing is left of it, and --mode=sample's samples
  come out. Without labels the file's own are taken, or none where the model was trained to do without.
  Raises ValueError for inputs, labels and times that do not fit.
  """
  x, label = read(inputs, tuple(config.data.shape))
  grid = _grid(recipes.recipe(config).sampling, noise)
  composed = composition.composed(
      config, workdir, labels, _default(config, inputs, label, len(x), labels, others),
      weights=weights, others=others)
  sampling = composed.sampling

  def one(models, keys, given):
    x, labels = given
    start = x if noise is None else mix(
        sampling.process(np.float32(noise)), x, sampling.noise(arrays.fold(keys, Stream.START)))
    predict = sampling.predictor(models, labels)
    return start, *sampling.integrate(predict, start, arrays.fold(keys, Stream.SOLVER), grid)

  parts = generate.in_batches(one, composed.models, (x, composed.labels), seed=seed,
                              batch=config.sample.batch)
  start, found, evaluations, norms = (np.concatenate(part) for part in zip(*parts))
  generate.check_finite(found)
  out = workdir / f'denoised-seed{seed}'
  rows = [x, found] if noise is None else [x, start, found]
  images.save_png(out.with_suffix('.png'), generate.picture(found, composed.columns['labels'])
                  if x.ndim != 4 else images.stacked(*(row[:100] for row in rows), columns=20))
  generate.save(out.with_suffix('.npz'), inputs=x, started=start, samples=found,
              evaluations=evaluations, norms=norms, **composed.columns)
  mixed = '' if noise is None else f', mixed with noise at t={noise:g},'
  print(f'{len(x):,} inputs from {x.min():.3g} to {x.max():.3g}{mixed} denoised at step '
        f'{composed.step:,} in {evaluations.mean():.0f} evaluations each: {out}.png, {out}.npz\n'
        f'{generate.steps_taken(config, evaluations)}{generate.unsettled(config, norms)}', end='')


def _default(config, inputs, label, count, given, others):
  """[count] labels where --labels gives none: the file's, or the null class."""
  num_classes = config.data.num_classes
  if given is not None or not num_classes:
    return np.zeros(count, np.int32)
  if label is not None:
    return classes(inputs, label, count, num_classes)
  if config.train.drop_label and not others and scale_of(config.sample) == 1:
    return np.full(count, num_classes, np.int32)
  raise ValueError('--mode=denoise: the model is told a class, and was not trained to do without: give '
                   f"--labels, one or more in turn, or {inputs} as .npz with 'labels' [n] "
                   '(config.train.drop_label > 0 and config.sample.scale=1 need none)')


def _grid(sampling: Sampling, noise: float | None):
  """The rest of the grid from the time `noise` on, or None for a descent."""
  first = sampling.start
  last = 0.0 if sampling.grid is None else float(sampling.grid[-1])
  if noise is not None and not last < noise <= first:
    raise ValueError(f'--noise={noise:g}: give a time above {last:g}, the data, and at most {first:g}, '
                     'where this model\'s samples start')
  if sampling.grid is None:
    return None
  if noise is None:
    raise ValueError('--mode=denoise: config.sample.solver goes along times, and cannot know how much '
                     'noise the inputs hold: give --noise=t, which mixes them with as much and starts '
                     'there, or take a model that is descended')
  grid = np.asarray(sampling.grid)
  return np.concatenate([[noise], grid[grid < noise]]).astype(grid.dtype)
