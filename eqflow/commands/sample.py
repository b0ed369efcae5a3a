"""--mode=sample: samples of a trained model, or of several models and classes composed."""

from eqflow.commands import nearest
from eqflow.runs import composition, generate, room
from eqflow.runs.run import Run
from eqflow.training import progress, train_state


def sample(run: Run, *, num_samples: int = 100, seed: int = 0, labels: list[str] | None = None,
           weights: list[str] | None = None, others: list[str] | None = None,
           neighbours: bool = False) -> None:
  """Writes workdir/samples-seed<seed>.png and .npz. Sample i is a function of the seed and i.

  For `labels`, `weights` and `others` see `composition`. With `neighbours`, samples are compared
  with their nearest training examples.
  """
  config, workdir = run.config, run.workdir
  room.check_samples(run, num_samples, '--num_samples')
  default = generate.labels_of(seed, num_samples, config.data.num_classes)
  found = composition.composed(run, labels, default, weights=weights, others=others)
  progress.say(f'sampling {num_samples:,} samples; the first batch compiles the sampler')
  x, evaluations, norms = generate.samples(found.sampling, found.models, found.labels, seed=seed,
                                           batch=config.sample.batch)
  path = workdir / f'samples-seed{seed}'
  generate.check_finite(x)
  sampled = f'samples of {train_state.called(config.sample.params)}, step {found.step:,}'
  generate.write(path, x, **found.columns, title=sampled, names=found.names,
                 evaluations=evaluations, norms=norms)
  print(f'{len(x):,} {sampled}\n'
        f'{generate.steps_taken(config, evaluations)}{generate.unsettled(config, norms)}', end='')
  if neighbours:
    nearest.report(config, workdir, x, generate.captions(found.labels, found.names))
  print(f'{path}.png\n{path}.npz')
