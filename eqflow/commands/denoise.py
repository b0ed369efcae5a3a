"""--mode=denoise: from inputs that are partly noise to data.

A time-independent field is descended from any input, at any noise level. A model that is
conditioned on time needs to know that level: --noise mixes a known one in.
"""

import pathlib

import numpy as np

from eqflow import arrays
from eqflow.arrays import Stream
from eqflow.config.sampling import Sampling, scale_of
from eqflow.data.inputs import classes, read
from eqflow.evaluation import images
from eqflow.mix import mix
from eqflow.runs import composition, generate
from eqflow.runs.run import Run
from eqflow.training import progress


def denoise(run: Run, *, inputs: pathlib.Path, seed: int = 0, noise: float | None = None,
            labels: list[str] | None = None, weights: list[str] | None = None,
            others: list[str] | None = None) -> None:
  """Writes workdir/denoised-seed<seed>.npz and .png: each input of the file, integrated or descended.

  With `noise`, a time t, input i is first mixed to alpha x + sigma eps, where eps is the noise of
  sample i of the seed. At the time where sampling starts, this gives the samples of --mode=sample.
  Labels default to the labels of the file, or to the null class if the model was trained with one.
  Raises ValueError for inputs, labels and times that do not fit.
  """
  config, workdir, recipe, _ = run
  x, label = read(inputs, tuple(config.data.shape))
  grid = _grid(recipe.sampling, noise)
  composed = composition.composed(
      run, labels, _default(config, inputs, label, len(x), labels, others),
      weights=weights, others=others)
  sampling = composed.sampling

  def one(models, keys, given):
    x, labels = given
    start = x if noise is None else mix(
        sampling.process(np.float32(noise)), x, sampling.noise(arrays.fold(keys, Stream.START)))
    predict = sampling.predictor(models, labels)
    return start, *sampling.integrate(predict, start, arrays.fold(keys, Stream.SOLVER), grid)

  progress.say(f'denoising {len(x):,} inputs; the first batch compiles the sampler')
  parts = generate.in_batches(one, composed.models, (x, composed.labels), seed=seed,
                              batch=config.sample.batch)
  start, found, evaluations, norms = (np.concatenate(part) for part in zip(*parts))
  generate.check_finite(found)
  out = workdir / f'denoised-seed{seed}'
  rows = {'input': x, **({} if noise is None else {f't={noise:g}': start}), 'denoised': found}
  title, names = f'inputs, denoised at step {composed.step:,}', composed.names
  picture = generate.picture(found, composed.labels, title=title, names=names) if x.ndim != 4 else (
      images.stacked(rows, columns=20, title=title,
                     captions={'input': generate.captions(composed.labels, names)} if names else {}))
  images.save_png(out.with_suffix('.png'), picture)
  generate.save(out.with_suffix('.npz'), inputs=x, started=start, samples=found,
              evaluations=evaluations, norms=norms, **composed.columns)
  mixed = '' if noise is None else f', mixed with noise at t={noise:g},'
  print(f'{len(x):,} inputs from {x.min():.3g} to {x.max():.3g}{mixed} denoised at step '
        f'{composed.step:,} in {evaluations.mean():.0f} evaluations each: {out}.png, {out}.npz\n'
        f'{generate.steps_taken(config, evaluations)}{generate.unsettled(config, norms)}', end='')


def _default(config, inputs, label, count, given, others):
  """[count] labels where --labels is not given: the labels of the file, or the null class."""
  num_classes = config.data.num_classes
  if given is not None or not num_classes:
    return np.zeros(count, np.int32)
  if label is not None:
    return classes(inputs, label, count, num_classes)
  if config.train.drop_label and not others and scale_of(config.sample) == 1:
    return np.full(count, num_classes, np.int32)
  raise ValueError('--mode=denoise: the model needs a class (config.train.drop_label='
                   f'{config.train.drop_label:g}, config.sample.scale={config.sample.scale}); give '
                   f"--labels, or {inputs} as a .npz file with 'labels' [n]")


def _grid(sampling: Sampling, noise: float | None):
  """The grid from the time `noise` on; None for a descent."""
  first = sampling.start
  last = 0.0 if sampling.grid is None else float(sampling.grid[-1])
  if noise is not None and not last < noise <= first:
    raise ValueError(f'--noise={noise:g} is not a time of the sampling grid; use one above {last:g} '
                     f'(data) and up to {first:g} (noise)')
  if sampling.grid is None:
    return None
  if noise is None:
    raise ValueError('--mode=denoise: the solver integrates over time, and the noise level of the '
                     'inputs is unknown; add --noise=t, which mixes noise in and starts at t, or use a '
                     'model that is descended')
  grid = np.asarray(sampling.grid)
  return np.concatenate([[noise], grid[grid < noise]]).astype(grid.dtype)
