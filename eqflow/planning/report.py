"""A plan as text."""

from typing import Any

from eqflow.arrays import Number

UNITS = 'B', 'KiB', 'MiB', 'GiB', 'TiB'


def amount(size: Number) -> str:
  """Bytes with a suitable unit, '2.51 GiB'."""
  unit = 0
  while abs(size) >= 1024 and unit < len(UNITS) - 1:
    size, unit = size / 1024, unit + 1
  return f'{size:.3g} {UNITS[unit]}' if abs(size) < 1000 else f'{size:,.0f} {UNITS[unit]}'


def number(value: Number) -> str:
  """A count with a suitable power of a thousand, '712 G'."""
  for power, name in ((15, 'P'), (12, 'T'), (9, 'G'), (6, 'M'), (3, 'k')):
    if abs(value) >= 10**power:
      return f'{value / 10**power:.3g} {name}'
  return f'{value:.3g} '


def duration(seconds: Number) -> str:
  """A time with a suitable unit, '31.2 ms'."""
  for least, unit, name in ((1, 1, 's'), (1e-3, 1e-3, 'ms'), (0, 1e-6, 'us')):
    if seconds >= least:
      return f'{seconds / unit:.3g} {name}'
  return f'{seconds} s'


def text(found: dict[str, Any]) -> str:
  """What `commands.plan.compiled` found, as lines to read."""
  mesh = ' x '.join(f'{axis} {size}' for axis, size in found['mesh'].items())
  lines = [f"{found['topology']}: {found['devices']} devices as {mesh}; batch {found['batch']:,}"
           + (f" in {found['accumulate']} microbatches" if found['accumulate'] > 1 else '')
           + (', remat' if found['remat'] else '')]
  lines += ['', *_memory(found), '', *_flops(found)]
  if found.get('collectives') is not None:
    lines += ['', *_communication(found['collectives'])]
  if 'seconds' in found:
    lines += ['', *_time(found)]
  if found['undivided']:
    lines += ['', 'not sharded, since the axis divides none of its sizes',
              *(f'  {path}, along {axes}' for path, axes in found['undivided'].items())]
  return '\n'.join(lines)


def _memory(found):
  sizes, limit = found['bytes'], found.get('available') or found['chip']['memory']
  rows = [(name, found['state'][name]) for name in ('parameters', 'optimizer', 'averages')]
  rows += [('activations', sizes['activations'])]
  if 'arguments' in sizes:
    known = sum(found['state'].values())
    rows += [('batch, metrics, padding', sizes['arguments'] - known + found['state']['other']),
             ('program, outputs', sizes['program'] + sizes['outputs'] - sizes['aliased'])]
  else:
    rows += [('other state', found['state']['other'])]
  lines = ['per device', *(f'  {name:<24}{amount(size):>12}' for name, size in rows)]
  total = f"  {'total':<24}{amount(sizes['total']):>12}"
  if limit:
    total += f" of {amount(limit)}, {sizes['total'] / limit:.0%}: " + (
        'fits' if found['fits'] else f"does not fit, by {amount(sizes['total'] - limit)}")
  if found['chip']['outside'] and found['fits'] and sizes['total'] > 0.75 * limit:
    total += '; JAX takes 75 % of a GPU unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise'
  return [*lines, total]


def _flops(found):
  formula, compiler = found['flops']['formula'], found['flops']['compiler']
  whole = formula * found['devices']
  lines = [f'FLOPs of a step           {number(whole)}FLOP, {number(whole / found["batch"])}FLOP an '
           f'example, {number(formula)}FLOP a device']
  # Compilers count the body of a loop once.
  against = (', the loop over microbatches counted once' if found['accumulate'] > 1
             else f', {compiler / formula - 1:+.1%}' if compiler else '')
  lines += [f'  by the compiler         {number(compiler)}FLOP a device{against}'
            if compiler else '  by the compiler         not reported']
  if 'traffic' in found:
    lines += [f"  memory read and written {amount(found['traffic'])} a device: "
              f"{found['intensity']:.3g} FLOP per byte"]
  return lines


def _communication(table):
  if not table:
    return ['communication of a step    none']
  lines = ['communication of a step, by mesh axes']
  for axes, row in table.items():
    kinds = ', '.join(f'{kind} {amount(size)}' for kind, size in row['kinds'].items())
    lines.append(f"  {axes:<24}{row['count']} of {amount(row['bytes'])}, {amount(row['moved'])} sent "
                 f'by a device: {kinds}')
  return lines


def _time(found):
  bounds = found['seconds']
  most = max(('compute', 'memory', 'links'), key=bounds.get)
  return [
      f"a step takes at least     {duration(bounds['step'])}: compute {duration(bounds['compute'])} in "
      f"bfloat16, memory {duration(bounds['memory'])}, "
      f"links {duration(bounds['links'])}; bound by {most}",
      f"  so at most              {found['examples_per_second']:,.0f} examples/s, "
      f"{found['days']:.3g} days for {found['examples']:,}, {found['chip_days']:,.3g} device days"]


def lever(row: dict[str, Any], limit: Number) -> str:
  """The total after a change of the config."""
  off = row['total'] - limit
  fits = f'fits, {amount(-off)} left' if row['fits'] else f'does not fit, by {amount(off)}'
  how = 'compiled' if row['how'] == 'compiled' else 'by arithmetic: activations unchanged'
  return f"  {row['lever']}: {amount(row['total'])}, {fits} ({how})"
