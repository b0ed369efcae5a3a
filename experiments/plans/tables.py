"""The tables of the README and the figure, from results/."""

import json

from eqflow.planning.report import amount, duration, number
from experiments import colours

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
    draw(plans).savefig(figure, dpi=140)


def draw(plans):
  """Device days of the whole training against devices; one line a model, chip and fsdp over all."""
  from matplotlib.figure import Figure
  figure = Figure(figsize=(7.6, 4.2), layout='constrained')
  axis, lines = figure.subplots(), {}
  for name, found in plans.items():
    if 'seconds' in found:
      key = found['model'], found['topology'].partition(':')[0], name.partition('fsdp-')[2]
      lines.setdefault(key, []).append((found['devices'], found['chip_days'], found['fits']))
  # A colour for each model, a marker for each chip, moved a little so that all are visible.
  models, chips = (list(dict.fromkeys(key[i] for key in lines)) for i in (0, 1))
  for (model, chip, fsdp), points in lines.items():
    k, colour = chips.index(chip), colours.CYCLE[models.index(model)]
    style = dict(color=colour, marker='*' if fsdp else 'osD'[k], markersize=11 if fsdp else 6)
    dash = '' if fsdp else ('-', '--', ':')[k]
    points = [(devices * (0.95, 1, 1.05)[k], days, fits) for devices, days, fits in sorted(points)]
    axis.loglog(*zip(*(point[:2] for point in points)), linestyle=dash, **style,
                label=f'{model}, {chip}{f", fsdp {fsdp}" if fsdp else ""}')
    for devices, days, fits in points:
      if not fits:
        axis.plot(devices, days, markerfacecolor='white', **style, zorder=3)
  axis.plot([], [], 'o', color=colours.BLACK, markerfacecolor='white', label='does not fit in memory')
  axis.set(xlabel='devices', ylabel='device days of the training, at least')
  for ticks, along in (([8, 16, 32, 64, 128, 256], axis.xaxis),
                       ([30, 50, 100, 200, 500, 1000], axis.yaxis)):
    along.set_ticks(ticks, labels=ticks)
  axis.minorticks_off()
  figure.legend(fontsize=8, loc='outside right center', frameon=False)
  axis.grid(alpha=0.3)
  return figure
