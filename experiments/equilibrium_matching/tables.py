"""Tables of the stored results in markdown: mean ± standard deviation over seeds of training."""

import re

import numpy as np

from eqflow.evaluation import report
from experiments.equilibrium_matching import flows, models, results

TITLES = {
    'eqm': 'truncated .8, gain 4', 'flow': 'flow matching', 'blind_flow': 'blind flow matching',
    'eqm_time': 'time-conditional EqM', 'linear': 'linear', 'constant': 'constant',
    'start_.5': 'truncated .5', 'start_.9': 'truncated .9', 'height_.8': 'piecewise .8, height .8',
    'height_1.4': 'piecewise .8, height 1.4', 'gain_1': 'truncated .8, gain 1',
    'gain_2': 'truncated .8, gain 2', 'gain_8': 'truncated .8, gain 8', 'dot': 'energy z · f(z)',
    'heldout': 'gain 4', 'heldout_twice': 'gain 4, twice the training', 'heldout_gain_1': 'gain 1',
    'squared_norm': 'energy ‖f‖²/2', 'negative': 'energy −‖f‖²/2',
}

ENERGIES = 'dot', 'squared_norm', 'negative'


def spread(values: list) -> str:
  """'mean ± std' over seeds; the number alone if there is one seed."""
  values = [value for value in values if value is not None]
  if not values:
    return ''
  mean = f'{np.mean(values):.3f}'
  return mean if len(values) == 1 else f'{mean} ± {np.std(values, ddof=1):.3f}'


def _row(found, how):
  """The cells of a row: distance, sampler `how`, precision, recall, nearest."""
  cells = {'seeds': len(found), 'distance': spread([one['best']['distance'] for one in found]),
           'sampler': how}
  return cells | {name: spread([one['best'][name] for one in found])
                  for name in ('precision', 'recall', 'nearest')}


def _steps(found):
  steps = sorted({one['best']['steps'] for one in found})
  return f'descent {found[0]["step_size"]:g} x {steps[0]}' + (
      f' to {steps[-1]}' if len(steps) > 1 else '')


def _solvers(found):
  return ', '.join(sorted({one['best']['solver'] for one in found}))


def models_table(data: str) -> str:
  """EqM and flow matching, conditioned on time or blind to it, each by its best sampler."""
  rows = {}
  for name, measurement, row, how in (
      ('EqM, descent', 'descended', 'eqm', _steps), ('EqM, ODE of f/c', 'ode', 'eqm', _solvers),
      ('flow matching, ODE', 'ode', 'flow', _solvers),
      ('flow matching, SDE', 'stochastic', 'flow', _solvers),
      ('blind flow matching, ODE', 'ode', 'blind_flow', _solvers),
      ('blind flow matching, descent', 'descended', 'blind_flow', _steps),
      ('time-conditional EqM, ODE of f/c', 'ode', 'eqm_time', _solvers)):
    found = results.read(data, measurement, row)
    if found:
      rows[name] = _row(found, how(found))
  swept = results.read(data, 'swept', 'eqm')
  if swept:
    name = 'nesterov 0.003 0.35'
    best = [_lowest(one[name]) for one in swept]
    steps = ', '.join(str(steps) for steps in sorted({steps for _, steps in best}))
    rows['EqM, Nesterov'] = {'seeds': len(best), 'distance': spread([value for value, _ in best]),
                             'sampler': f'{name} x {steps}'}
  return report.table(rows)


def _lowest(curve):
  return min((value, int(steps)) for steps, value in curve.items() if value is not None)


def decays(data: str) -> str:
  """Every decay and gain after its best number of steps, and after twice as many."""
  rows = {}
  for row in models.ROWS_OF[data]:
    found = results.read(data, 'descended', row)
    if not found or row in ('blind_flow', *ENERGIES):
      continue
    late = [one['curve'].get(str(min(250, 2 * one['best']['steps']))) for one in found]
    rows[TITLES[row]] = {
        'seeds': len(found), 'step size': found[0]['step_size'],
        'best steps': ', '.join(str(one['best']['steps']) for one in found),
        'distance': spread([one['best']['distance'] for one in found]),
        'twice the steps, at most 250': spread(late)}
  return report.table(rows)


def energies(data: str) -> str:
  """Explicit energies, descended by their gradient, and the plain field."""
  rows = {}
  for row in ('eqm', *ENERGIES):
    found = results.read(data, 'descended', row)
    if found:
      rows[TITLES[row] if row != 'eqm' else 'none'] = _row(found, _steps(found))
  return report.table(rows)


def two_by_two(data: str) -> str:
  """Conditioned on time or blind to it, by decay: each by its best sampler."""
  def best(row):
    tried = [results.read(data, name, row) for name in ('ode', 'descended')]
    pairs = [[one['best']['distance'] for one in found] for found in tried if found]
    return spread(min(pairs, key=np.mean)) if pairs else ''
  return report.table({
      'time-conditional': {'constant': best('flow'), 'truncated .8': best('eqm_time')},
      'blind to time': {'constant': best('blind_flow'), 'truncated .8': best('eqm')}})


def adaptive(data: str) -> str:
  """By threshold: evaluations, fraction of 250 saved, distance, and the distance of fixed steps."""
  found = results.read(data, 'adaptive', 'eqm')
  rows = {}
  for threshold in found[0]['rows'] if found else ():
    of = lambda key: [one['rows'][threshold][key] for one in found]
    change = [one['rows'][threshold]['distance'] / one['fixed_250'] - 1 for one in found]
    rows[threshold] = {
        'evaluations': f'{np.mean(of("evaluations")):.0f}',
        'saved': f'{1 - np.mean(of("evaluations")) / 250:.1%}', 'distance': spread(of('distance')),
        'change from 250 steps': f'{np.mean(change):+.0%}',
        'fixed steps, same cost': spread(of('fixed')),
        'not converged': f'{np.mean(of("unfinished")):.0f}'}
  return report.table(rows)


def noisy(data: str) -> str:
  """By noise level t0 of the input: EqM, which needs no t0, and flows that start at t0 or at 1."""
  eqm, flow, blind = (results.read(data, 'noisy', row) for row in ('eqm', 'flow', 'blind_flow'))
  rows = {}
  for level in eqm[0] if eqm else ():
    of = lambda found, *keys: spread([at(one[level], keys) for one in found])
    rows[level] = {
        'EqM, norm < 3.5': of(eqm, 'threshold', 'distance'),
        'evaluations': f'{np.mean([one[level]["threshold"]["evaluations"] for one in eqm]):.0f}',
        'EqM, 250 steps': of(eqm, 'fixed', '250'), 'flow from 1': of(flow, 'at_1'),
        'flow from t0': of(flow, 'at_level'), 'blind flow from 1': of(blind, 'at_1'),
        'blind flow from t0': of(blind, 'at_level'), 'input': of(eqm, 'corrupted')}
  return report.table(rows)


def noisy_thresholds(data: str) -> str:
  """By threshold and noise level: distance of EqM over distance of flow matching that starts there."""
  eqm, flow = (results.read(data, 'noisy', row) for row in ('eqm', 'flow'))
  rows = {}
  for threshold in next(iter(eqm[0].values())).get('rows', ()) if eqm and flow else ():
    rows[threshold] = {level: spread([
        one[level]['rows'][threshold]['distance'] / other[level]['at_level']
        for one, other in zip(eqm, flow)]) for level in eqm[0]}
  return report.table(rows)


def noisy_fields(data: str) -> str:
  """By field and noise level: distance at norm < 3.5 of gain 4, and its ratio to flow matching."""
  flow = results.read(data, 'noisy', 'flow')
  rows = {}
  for row in flows.DESCENDED:
    found = results.read(data, 'noisy', row)
    pairs = lambda level: [(one[level]['threshold']['distance'], other[level]['at_level'])
                           for one, other in zip(found, flow)]
    if found:
      rows[TITLES[row]] = {'seeds': len(found)} | {
          level: spread([distance for distance, _ in pairs(level)]) for level in found[0]} | {
          f'{level}, over flow': spread([distance / other for distance, other in pairs(level)])
          for level in found[0]}
  return report.table(rows)


def at(tree: dict, keys: tuple) -> float:
  """tree[keys[0]][keys[1]]..."""
  for key in keys:
    tree = tree[key]
  return tree


def detected(data: str, row: str = 'heldout') -> str:
  """AUROC of every score on every set, against held-out digits."""
  found = results.read(data, 'detected', row)
  return report.table({name: {score: spread([one[name][score] for one in found])
                              for score in found[0][name]} for name in found[0]} if found else {})


def detected_fields(data: str) -> str:
  """AUROC of the minimum norm on the sets farthest out, by training."""
  rows = {}
  for row in ('heldout', 'heldout_twice', 'heldout_gain_1'):
    found = results.read(data, 'detected', row)
    if found:
      rows[TITLES[row]] = {'seeds': len(found)} | {
          name: spread([one[name]['norm, min'] for one in found])
          for name in ('constants', 'uniform noise', 'shuffled', 'inverted')}
  return report.table(rows)


def descents(data: str) -> str:
  """Step sizes, momenta, optimizers: distance by number of evaluations, the best, and where it is."""
  rows, columns = {}, ('10', '25', '50', '75', '100', '150')
  base = results.read(data, 'descended', 'eqm')
  swept = results.read(data, 'swept', 'eqm'), results.read(data, 'optimized', 'eqm')
  curves = {'descent 0.003': [one['curve'] for one in base]} if base else {}
  for found in swept:
    for name in found[0] if found else ():
      curves[name] = [one[name] for one in found]
  for name, of in curves.items():
    lowest = [_lowest(one) for one in of]
    rows[name] = {steps: spread([one.get(steps) for one in of]) for steps in columns} | {
        'best': spread([value for value, _ in lowest]),
        'at': ', '.join(str(steps) for _, steps in lowest)}
  return report.table(rows)


def solvers(data: str) -> str:
  """Flow matching by ODE and SDE solvers, EqM's f/c by ODE solvers."""
  rows = {}
  for measurement, row in (('ode', 'flow'), ('ode', 'eqm'), ('ode', 'blind_flow'),
                           ('ode', 'eqm_time'), ('stochastic', 'flow')):
    found = results.read(data, measurement, row)
    for name in found[0]['distances'] if found else ():
      rows.setdefault(name, {})[TITLES[row] if row != 'eqm' else 'EqM'] = spread(
          [one['distances'][name] for one in found])
  return report.table(rows)


def timed(data: str) -> str:
  """Time for 10,000 samples by refilled slots and by whole batches."""
  rows = {}
  for i, one in enumerate(results.read(data, 'timed', 'eqm')):
    for title, name in (('whole batches', 'batches'), ('refilled slots', 'refilled')):
      rows[f'{title}, seed {i}'] = {'wall, s': one[name]['wall'], 'CPU, s': one[name]['cpu'],
                                    'evaluations': one[name]['evaluations']}
    rows[f'fraction saved, seed {i}'] = {
        'wall, s': one['saved']['wall'], 'CPU, s': one['saved']['cpu'],
        'evaluations': one['saved']['evaluations']}
  return report.table(rows)


def composed_energies(data: str) -> str:
  """Mean energies E_a and E_b at samples of both classes and of one."""
  found = results.read(data, 'composed', 'dot')
  rows = {}
  for pair in found[0] if found else ():
    a, b = pair.split('+')
    of = lambda name, y: spread([one[pair]['energies'][name][y] for one in found])
    rows[pair] = {'E(a) at both': of('both', a), 'E(a) at b': of(b, a), 'E(b) at both': of('both', b),
                  'E(b) at a': of(a, b)}
  return report.table(rows)


def composed(data: str) -> str:
  """Mean norms |f_a| and |f_b| at samples of both classes and of one."""
  found = results.read(data, 'composed', 'eqm')
  rows = {}
  for pair in found[0] if found else ():
    a, b = pair.split('+')
    of = lambda name, y: spread([one[pair]['norms'][name][y] for one in found])
    rows[pair] = {f'‖f({first})‖ at {there}': of(at, y)
                  for first, second, y, other in (('a', 'b', a, b), ('b', 'a', b, a))
                  for there, at in (('both', 'both'), (second, other), (first, y))}
  return report.table(rows)


TABLES = {'models': models_table, 'decays': decays, 'energies': energies,
          'two_by_two': two_by_two, 'adaptive': adaptive, 'noisy': noisy,
          'noisy_thresholds': noisy_thresholds, 'noisy_fields': noisy_fields, 'detected': detected,
          'detected_fields': detected_fields, 'descents': descents, 'solvers': solvers, 'timed': timed,
          'composed': composed, 'composed_energies': composed_energies}


def filled(text: str) -> str:
  """text with everything between <!-- data table --> and <!-- end --> replaced by that table."""
  def one(match):
    data, name = match.group(1).split()
    table = TABLES[name](data)
    rows = table.count('\n') - 1
    return f'<!-- {data} {name} -->\n{table if rows else "not yet measured"}\n<!-- end -->'
  return re.sub(r'<!-- (\w+ \w+) -->\n.*?<!-- end -->', one, text, flags=re.DOTALL)
