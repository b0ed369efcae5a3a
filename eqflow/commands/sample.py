"""--mode=sample: samples of a trained model, or of several models and classes composed."""

from eqflow.commands.neighbours import report
from eqflow.runs import composition, generate
from eqflow.runs.run import Run
from eqflow.training import train_state


def sample(run: Run, *, num_samples: int = 100, seed: int = 0, labels: list[str] | None = None,
           weights: list[str] | None = None, others: list[str] | None = None,
           neighbours: bool = False) -> None:
  """Writes workdir/samples-seed<seed>.png and .npz. Sample i is a function of the seed and i.

  For `labels`, `weights` and `others` see `composition`. With `neighbours`, samples are compared
  with their nearest training examples.
  """
  config, workdir = run.config, run.workdir
  default = generate.labels_of(seed, num_samples, config.data.num_classes)
  found = composition.composed(run, labels, default, weights=weights, others=others)
  x, evaluations, norms = generate.samples(found.sampling, found.models, found.labels, seed=seed,
                                           batch=config.sample.batch)
  path = workdir / f'samples-seed{seed}'
  generate.check_finite(x)
  generate.write(path, x, **found.columns, evaluations=evaluations, norms=norms)
  print(f'{len(x):,} samples of {train_state.called(config.sample.params)} at step {found.step:,}\n'
        f'{generate.steps_taken(config, evaluations)}{generate.unsettled(config, norms)}', end='')
  if neighbours:
    report(config, workdir, x)
  print(f'{path}.png\n{path}.npz')
