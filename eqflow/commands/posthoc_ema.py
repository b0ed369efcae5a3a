"""--mode=reconstruct and --mode=sweep: power EMAs of other widths, computed after training."""

from collections.abc import Sequence
import json
from typing import Any

from eqflow import files
from eqflow.commands.evaluate import evaluate
from eqflow.evaluation import report
from eqflow.runs import identity, restore
from eqflow.runs.run import Run
from eqflow.training import progress, snapshots

_FAR = 0.05   # A larger relative error makes an EMA useless: --examples is far from every snapshot.


def reconstruct(run: Run, *, std: Sequence[float], examples: int | None = None,
                skip_damaged: bool = False) -> dict[float, float]:
  """{std: expected error}: EMAs of these widths, from workdir/snapshots to workdir/reconstructed.

  `examples` is the training time of the EMAs; by default the time of the last snapshot. The error is
  the relative distance between the weights that an EMA gives to past parameters and the weights of the
  exact power EMA; it is printed and stored with the EMA. --config.sample.params=0.15 then selects the
  newest EMA of that width, except for a width that training tracks: there it selects the tracked EMA.
  Each file is read once; the host keeps one tree for each width, and one more. Raises as
  `snapshots.plan` does.
  """
  config, workdir, recipe, _ = run
  identity.check_config(config, workdir)
  like = restore.average_like(recipe)
  name, times = identity.identity(config), snapshots.listed(workdir / 'snapshots')
  last = max(times, default=0)
  if examples and 0 < last < examples:
    raise ValueError(f'--examples={examples} is later than the last snapshot, at {last}; '
                     f'use --examples={last}')
  made = snapshots.plan(workdir / 'snapshots', examples, std, like=like, run=name,
                        skip_damaged=skip_damaged)
  at = made.examples
  if at not in times and max(made.errors.values()) > _FAR:
    near = sorted(sorted(times, key=lambda time: abs(time - at))[:2])
    print(f'no snapshot at {at:,} examples: these EMAs are inaccurate; use '
          f'--examples={" or ".join(map(str, near))}', flush=True)
  progress.say(f'reading {len(made.terms)} EMAs from snapshots')
  for width, tree in snapshots.reconstruct(made, like).items():
    error, folder = made.errors[width], workdir / 'reconstructed' / repr(width)
    record = dict(examples=at, std=width, expected_error=error, snapshots=len(made.terms))
    with files.replacing_folder(folder) as new:
      snapshots.write(new, at, {repr(width): tree}, run=name)
      files.write_text(new / 'expected_error.json', json.dumps(record, indent=2) + '\n')
    tracked = repr(width) in recipe.averages.names
    use = '--mode=sweep evaluates it' if tracked else f'--config.sample.params={width!r} samples it'
    print(f'std {width:g} at {at:,} examples: expected error {error:.1e}, from {len(made.terms)} '
          f'EMAs in snapshots; {use}', flush=True)
  return made.errors


def sweep(run: Run, *, std: Sequence[float], **options: Any) -> None:
  """Evaluates the EMA of every width: workdir/sweep.json and sweep.png, distance over std."""
  config, workdir = run.config, run.workdir
  errors, rows = reconstruct(run, std=std, **options), {}
  for width, error in sorted(errors.items()):
    each = config.copy_and_resolve_references()
    with each.unlocked():
      each.sample.params = repr(width)
    # Reconstructed even if training tracks this width: the tracked EMA is of the last step only.
    at_width = run._replace(config=each)
    found = evaluate(at_width, restored=restore.models(at_width, reconstructed=True))
    rows[repr(width)] = {'expected error': f'{error:.1e}', **next(iter(found.values()))}
  files.write_text(workdir / 'sweep.json', json.dumps(rows, indent=2) + '\n')
  print(f'{report.LEGEND}\n\n{report.table(rows)}')
  _draw(rows, workdir / 'sweep.png')
  print(workdir / 'sweep.png', flush=True)


def _draw(rows, path):
  from matplotlib.figure import Figure
  figure = Figure(figsize=(5, 3.4), layout='constrained')
  axis, column = figure.subplots(), next(key for key in next(iter(rows.values()))
                                         if key != 'expected error')
  axis.plot([float(std) for std in rows], [row[column] for row in rows.values()], 'o-')
  axis.set(xlabel='std of the EMA, relative to the training time', ylabel=column)
  axis.grid(alpha=0.3)
  with files.replacing(path) as file:
    figure.savefig(file, dpi=150, format='png')
