"""--mode=sample: samples of a trained model, or of several models and classes composed."""

import pathlib

from ml_collections import ConfigDict

from eqflow.commands.neighbours import report
from eqflow.runs import composition, generate


def sample(config: ConfigDict, workdir: pathlib.Path, *, num_samples: int = 100, seed: int = 0,
           labels: list[str] | None = None, weights: list[str] | None = None,
           others: list[str] | None = None, neighbours: bool = False) -> None:
  """Writes workdir/samples-seed<seed>.png and .npz. Sample i is a function of the seed and i.

  `labels`, `weights` and `others` are those of `composition`. With `neighbours`, samples are compared
  with their nearest training examples.
  """
  default = generate.labels_of(seed, num_samples, config.data.num_classes)
  found = composition.composed(config, workdir, labels, default, weights=weights, others=others)
  x, evaluations, norms = generate.samples(found.sampling, found.models, found.labels, seed=seed,
                                           batch=config.sample.batch)
  path = workdir / f'samples-seed{seed}'
  generate.check_finite(x)
  generate.write(path, x, **found.columns, evaluations=evaluations, norms=norms)
  print(f'{len(x):,} samples of {config.sample.params!r} at step {found.step:,}\n'
        f'{generate.steps_taken(config, evaluations)}{generate.unsettled(config, norms)}', end='')
  if neighbours:
    report(config, workdir, x)
  print(f'{path}.png\n{path}.npz')
