"""--mode=reconstruct and --mode=sweep: power averages of other widths, made after the run."""

from collections.abc import Sequence
import json
import math
import shutil
from typing import Any

from eqflow import ema
from eqflow.commands.evaluate import evaluate
from eqflow.evaluation import report
from eqflow.runs import identity, restore
from eqflow.runs.run import Run
from eqflow.training import snapshots

_FAR = 0.05   # of a profile's norm: an average that is another
_MOST = 1000  # widths of one '...'


def stds_of(given: list[str] | None) -> list[float]:
  """['0.03', '0.05', '...', '0.25'] -> numbers; '...' goes on in the steps of the two before it.

  Raises ValueError for what is no number in (0, 0.2887), or nothing.
  """
  stds, example = [], '--std=0.05,0.1 or --std=0.03,0.05,...,0.25'
  for i, text in enumerate(given or ()):
    if text == '...':
      if len(stds) < 2 or i + 1 == len(given):
        raise ValueError(f"--std={','.join(given)}: '...' stands between two numbers and a last, as "
                         f'in {example}')
      continue
    try:
      number = float(text)
    except ValueError:
      raise ValueError(f'--std={",".join(given)}: {text!r} is no number; write {example}') from None
    if i and given[i - 1] == '...':
      stds += _between(*stds[-2:], number, given)
    stds.append(number)
  wrong = [std for std in stds if not ema.is_std(repr(std))]
  if wrong or not stds:
    raise ValueError(f'--std={",".join(given or ())}: give widths between 0 and 0.2887 relative to the '
                     f'time trained, such as {example}' + (f', not {wrong}' if wrong else ''))
  return list(dict.fromkeys(stds))


def _between(first, second, last, given):
  """The numbers after `second`, in the steps of the two, that are below `last`."""
  count = (last - second) / (second - first) if second > first else 0
  if not 0 < count < _MOST:
    raise ValueError(f"--std={','.join(given)}: the two numbers before '...' must rise towards the "
                     f'last, in fewer than {_MOST} steps')
  return [round(second + i * (second - first), 10) for i in range(1, math.ceil(count - 1e-6))]


def reconstruct(run: Run, *, std: Sequence[float], examples: int | None = None,
                skip_damaged: bool = False) -> dict[float, float]:
  """{std: expected error}: averages of these widths, from workdir/snapshots to workdir/reconstructed.

  `examples` is the time they are for, the last snapshot's if None. The error is the relative distance
  of their weighting of the training from the power average's own, printed and stored beside each.
  They are then parameters by name, --config.sample.params=0.15, in place of one that was made before;
  a width that training keeps is named so already, by what it is at the end. Files are read once for
  all widths; the host holds a tree for each, and one more. Raises as `snapshots.plan` does.
  """
  config, workdir, recipe, _ = run
  identity.check_config(config, workdir)
  like = restore.average_like(recipe)
  name, times = identity.identity(config), snapshots.listed(workdir / 'snapshots')
  last = max(times, default=0)
  if examples and 0 < last < examples:
    raise ValueError(f'--examples={examples} is later than the last snapshot, at {last}: nothing is '
                     'known of that time; give that one, or none')
  made = snapshots.plan(workdir / 'snapshots', examples, std, like=like, run=name,
                        skip_damaged=skip_damaged)
  at = made.examples
  if at not in times and max(made.errors.values()) > _FAR:
    near = sorted(sorted(times, key=lambda time: abs(time - at))[:2])
    print(f'there is no snapshot at {at:,} examples, and so averages at that time are far from what '
          f'they stand for: give --examples={" or ".join(map(str, near))}', flush=True)
  for width, tree in snapshots.reconstruct(made, like).items():
    error, folder = made.errors[width], workdir / 'reconstructed' / repr(width)
    shutil.rmtree(folder, ignore_errors=True)
    snapshots.write(folder, at, {repr(width): tree}, run=name)
    told = dict(examples=at, std=width, expected_error=error, snapshots=len(made.terms))
    (folder / 'expected_error.json').write_text(json.dumps(told, indent=2) + '\n')
    tracked = repr(width) in recipe.averages.names
    use = '--mode=sweep evaluates it' if tracked else f'--config.sample.params={width!r} samples it'
    print(f'std {width:g} at {at:,} examples: expected error {error:.1e}, from {len(made.terms)} '
          f'averages in snapshots; {use}', flush=True)
  return made.errors


def sweep(run: Run, *, std: Sequence[float], **options: Any) -> None:
  """Evaluates the average of every width: workdir/sweep.json and sweep.png, distance by std."""
  config, workdir, recipe, _ = run
  errors, rows = reconstruct(run, std=std, **options), {}
  for width, error in sorted(errors.items()):
    each = config.copy_and_resolve_references()
    with each.unlocked():
      each.sample.params = repr(width)
    # Also where the average was kept in training: that one stands at its end, these at `examples`.
    found = evaluate(run._replace(config=each),
                     restored=restore.models(each, recipe, workdir, reconstructed=True))
    rows[repr(width)] = {'expected error': f'{error:.1e}', **next(iter(found.values()))}
  (workdir / 'sweep.json').write_text(json.dumps(rows, indent=2) + '\n')
  print(report.table(rows))
  _draw(rows, workdir / 'sweep.png')
  print(workdir / 'sweep.png', flush=True)


def _draw(rows, path):
  from matplotlib.figure import Figure
  figure = Figure(figsize=(5, 3.4), layout='constrained')
  axis, column = figure.subplots(), next(key for key in next(iter(rows.values()))
                                         if key != 'expected error')
  axis.plot([float(std) for std in rows], [row[column] for row in rows.values()], 'o-')
  axis.set(xlabel='std of the average, relative to the time trained', ylabel=column)
  axis.grid(alpha=0.3)
  figure.savefig(path, dpi=150)
