"""The tables of the README and the figure, from results/."""

import json

from eqflow.planning.report import amount, duration, number

HEAD = ('model', 'slice', 'mesh', 'microbatches, remat', 'state', 'activations', 'total', 'fits',
        'FLOP per step', 'compiler', 'sent per device', 'step, at least', 'bound by', 'examples/s',
        'days', 'compiled in')
MARK = '## Measured'


def read(folder):
  """{name: plan} of every result."""
  paths = sorted((folder / 'results').glob('*.json'))
  return {path.stem: json.loads(path.read_text()) for path in paths}


def table(plans):
  """One row a plan, as markdown."""
  lines = [f"| {' | '.join(HEAD)} |", '|' + '---|' * len(HEAD)]
  return '\n'.join(lines + [f"| {' | '.join(_row(found))} |" for found in plans.values()])


def _row(found):
  sizes, mesh, bounds = found['bytes'], found['mesh'], found.get('seconds')
  compiler, formula = found['flops']['compiler'], found['flops']['formula']
  row = [found['model'], found['topology'], f"{mesh['data']} x {mesh['fsdp']} x {mesh['tensor']}",
         f"{found['accumulate']}{', remat' if found['remat'] else ''}",
         amount(sum(found['state'].values())), amount(sizes['activations']), amount(sizes['total']),
         'yes' if found['fits'] else 'no', f'{number(formula * found["devices"])}FLOP',
         'not reported' if not compiler
         else f'{compiler / formula - 1:+.1%}' if found['accumulate'] == 1 else 'of one microbatch']
  if not bounds:
    return row + [''] * (len(HEAD) - len(row))
  moved = sum(one['moved'] for one in found['collectives'].values())
  return row + [amount(moved), duration(bounds['step']),
                max(('compute', 'memory', 'links'), key=bounds.get),
                f"{found['examples_per_second']:,.0f}", f"{found['days']:.3g}",
                f"{found['compile_seconds']:.0f} s"
                + (f", {found['compile_cpu_seconds']:.0f} of a core" if 'compile_cpu_seconds' in found
                   else '')]


def undivided(plans):
  """Parameters that are not sharded, plan by plan."""
  paths = lambda lost: ', '.join(f'`{path}` along {axes}' for path, axes in lost.items())
  lines = [f"- {name}: {paths(found['undivided'])}" for name, found in plans.items()
           if found['undivided']]
  return '\n'.join(lines) or 'Everything divides.'


def levers(plans):
  """Changes that make a plan fit, plan by plan."""
  lines = [f"- {name}: {row['lever']}: {amount(row['total'])}, "
           f"{'fits' if row['fits'] else 'does not fit'} ({row['how']})"
           for name, found in plans.items() for row in found.get('levers', ())]
  return '\n'.join(lines)


def write(folder, figure):
  """README.md from MARK on, and the figure."""
  plans, path = read(folder), folder / 'README.md'
  head = path.read_text().partition(MARK)[0]
  parts = [f'{len(plans)} plans.', table(plans)] if plans else ['Nothing yet.']
  if plans:
    parts += ['Not sharded, since the axis divides none of its sizes:', undivided(plans)]
  if found := levers(plans):
    parts += ['Where a plan does not fit, changes that may make it fit:', found]
  path.write_text(f'{head}{MARK}\n\n' + '\n\n'.join(parts) + '\n')
  if any('seconds' in found for found in plans.values()):
    draw(plans).savefig(figure, dpi=150)


def draw(plans):
  """Device days of the whole training against devices; one line a model and chip."""
  from matplotlib.figure import Figure
  figure = Figure(figsize=(6, 4), layout='constrained')
  axis, lines = figure.subplots(), {}
  for name, found in plans.items():
    if 'seconds' in found and 'fsdp-256' not in name:
      key = found['model'], found['topology'].partition(':')[0]
      lines.setdefault(key, []).append((found['devices'], found['chip_days']))
  # A colour for each model, a marker for each chip.
  models, chips = (list(dict.fromkeys(key[i] for key in lines)) for i in (0, 1))
  for (model, chip), points in lines.items():
    axis.loglog(*zip(*sorted(points)), f'C{models.index(model)}', marker='osD^'[chips.index(chip)],
                linestyle=('-', '--', ':', '-.')[chips.index(chip)], label=f'{model}, {chip}')
  axis.set(xlabel='devices', ylabel='device days of the training, at least')
  axis.set_xticks([8, 16, 32, 64, 128, 256], labels=[8, 16, 32, 64, 128, 256], minor=False)
  axis.minorticks_off()
  axis.legend(fontsize=7)
  axis.grid(alpha=0.3)
  return figure
