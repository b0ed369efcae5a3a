"""Redraws every figure and table from the stored results: results/<data>/*.png and README.md.

  python -m experiments.equilibrium_matching.figures
"""

import pathlib

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot as plt
import numpy as np

from eqflow.evaluation import images
from experiments import colours, strips
from experiments.equilibrium_matching import abilities, models, results, tables

README = pathlib.Path(__file__).parent / 'README.md'
LABEL = 'Fréchet distance'


def _axes(columns, *, size):
  return plt.subplots(1, columns, figsize=size, layout='constrained', squeeze=False)


def _line(axis, curves, name, colour, **style):
  """The mean and the range, from the least to the largest, of curves {x: distance} over seeds."""
  x = sorted((float(key) for key in curves[0]
              if all(curve.get(key) is not None for curve in curves)))
  keys = {float(key): key for key in curves[0]}
  y = np.array([[curve[keys[at]] for at in x] for curve in curves])
  axis.plot(x, y.mean(0), color=colour, label=name, **dict(linewidth=1.7) | style)
  axis.fill_between(x, y.min(0), y.max(0), facecolor=(colour, 0.12), edgecolor=(colour, 0.6),
                    linewidth=0.5)


def _label(axis, title, xlabel, *, below=False, **limits):
  axis.set(title=title, xlabel=xlabel, ylabel=LABEL, **limits)
  axis.grid(alpha=0.25)
  place = dict(loc='upper center', bbox_to_anchor=(0.5, -0.13), ncol=2) if below else {}
  axis.legend(frameon=False, fontsize=8, **place)


def decays(data: str):
  """Distance along descents by decay and by gain: the paper's table 3 and figure 9."""
  groups = {'by decay, gain 4': ['eqm', 'start_.5', 'start_.9', 'linear', 'height_.8', 'height_1.4',
                               'constant'],
            'by gain, truncated .8': ['gain_1', 'gain_2', 'eqm', 'gain_8']}
  read = {row: results.read(data, 'descended', row) for rows in groups.values() for row in rows}
  # A panel with one line compares nothing.
  groups = {title: rows for title, rows in groups.items()
            if 'linear' in rows or sum(bool(read[row]) for row in rows) > 1}
  figure, axes = _axes(len(groups), size=(5.5 * len(groups), 4.2))
  for axis, (title, rows) in zip(axes[0], groups.items()):
    for row, colour in zip(rows, colours.CYCLE):
      found = read[row]
      if found:
        # On the digits the curves of gains 8 and 4 coincide.
        style = dict(linestyle=(0, (3, 3))) if row == 'gain_8' else {}
        _line(axis, [one['curve'] for one in found], tables.TITLES[row], colour, **style)
    steps = 'steps of size .003 (linear: .006)' if 'linear' in rows else 'steps of size .012/gain'
    _label(axis, title, steps, yscale='log', ylim=(0.2, 10) if data == 'digits' else None)
  return figure


def evaluations(data: str):
  """Distance by number of evaluations (figure 6) and by step size (figure 7)."""
  figure, axes = _axes(2, size=(11, 4.2))
  left, right = axes[0]
  base, swept = (results.read(data, name, 'eqm') for name in ('descended', 'swept'))
  lines = {'EqM, descent .003': [one['curve'] for one in base]}
  for title, name in (('EqM, descent .0125', 'descent 0.0125'),
                      ('EqM, Nesterov .35, .003', 'nesterov 0.003 0.35'),
                      ('EqM, Nesterov .35, .012', 'nesterov 0.012 0.35')):
    lines[title] = [one[name] for one in swept]
  for title, row in (('flow matching, ddim', 'flow'), ('blind flow matching, ddim', 'blind_flow')):
    lines[title] = [{key.split()[1]: value for key, value in one['distances'].items()
                     if key.startswith('ddim')} for one in results.read(data, 'ode', row)]
  for (title, curves), colour in zip(lines.items(), colours.CYCLE):
    if curves:
      # Nesterov's steps are gradient descent's here: dashes above a wide line.
      style = (dict(linewidth=4, alpha=0.6) if 'descent' in title
               else dict(linestyle=(0, (3, 2))) if 'Nesterov' in title else {})
      _line(left, curves, title, colour, **style)
  _label(left, 'by evaluations', 'evaluations', xscale='log', yscale='log',
          ylim=(0.2, 40) if data == 'digits' else None)
  for row, colour in (('flow', colours.ORANGE), ('blind_flow', colours.SKY)):
    found = results.read(data, 'step_sizes', row)
    if found:
      _line(right, found, f'{tables.TITLES[row]}, 50 steps of size factor/50', colour, marker='.')
  if base and swept:
    # The same number of steps for all lengths, and the best number for each.
    fixed = [{str(float(name.split()[1]) / 0.003): one[name]['30'] for name in one
              if name.startswith('descent') and '30' in one[name]} | {'1.0': start['curve']['30']}
             for start, one in zip(base, swept)]
    scaled = [{str(float(name.split()[1]) / 0.003): min(filter(None, one[name].values()))
               for name in one if name.startswith('descent')} | {'1.0': start['best']['distance']}
              for start, one in zip(base, swept)]
    _line(right, fixed, 'EqM, 30 steps of size .003 x factor', colours.BLUE, marker='.')
    _line(right, scaled, 'EqM, best number of steps', colours.RED, marker='.')
  # The lines leave no corner free for a legend.
  _label(right, 'by step size', 'step size, as a factor', below=True, xscale='log', yscale='log',
          ylim=(0.2, 400) if data == 'digits' else None)
  right.set_xticks([0.5, 1, 2, 4, 8], ['0.5', '1', '2', '4', '8'])
  right.set_xticks([], minor=True)
  return figure


def adaptive(data: str):
  """Steps until |f| is small (figure 8); distance by evaluations, stopped by norm or fixed."""
  found = results.read(data, 'adaptive', 'eqm')
  figure, axes = _axes(2, size=(11, 3.8))
  left, right = axes[0]
  for one, colour in zip(found, colours.CYCLE):
    counts = {int(steps): count for steps, count in one['steps_at_3_5'].items()}
    left.hist(list(counts), bins=np.arange(0, 252, 3), weights=list(counts.values()), alpha=0.5,
              color=colour, label=f'seed {found.index(one)}')
    rows = one['rows'].values()
    right.plot([row['evaluations'] for row in rows], [row['distance'] for row in rows], 'o',
               color=colour, markersize=4, label=f'stopped by norm, seed {found.index(one)}')
  left.axvline(250, color=colours.BLACK, linewidth=0.8, linestyle=':')
  left.set(title=f'evaluations until |f| < {_threshold(data):g}',
           xlabel='evaluations', ylabel='samples')
  left.legend(frameon=False, fontsize=8)
  left.grid(alpha=0.25)
  for i, one in enumerate(results.read(data, 'descended', 'eqm')):
    steps = [steps for steps in one['curve'] if int(steps) >= 85]
    right.plot([int(n) for n in steps], [one['curve'][n] for n in steps], color=colours.CYCLE[i],
               linewidth=1, label=f'fixed number, seed {i}')
  _label(right, 'stopped by norm, or after a fixed number of steps', 'evaluations')
  return figure


def noisy(data: str):
  """Distance by noise level of the input: figure 10."""
  figure, axes = _axes(1, size=(6.5, 4.2))
  axis = axes[0, 0]
  lines = (('eqm', ('threshold', 'distance'), f'EqM, until |f| < {_threshold(data):g}'),
           ('eqm', ('fixed', '250'), 'EqM, 250 steps'), ('flow', ('at_1',), 'flow from t = 1'),
           ('flow', ('at_level',), 'flow from t = t0'),
           ('blind_flow', ('at_1',), 'blind flow from t = 1'),
           ('blind_flow', ('at_level',), 'blind flow from t = t0'))
  for (row, keys, title), colour in zip(lines, colours.CYCLE):
    curves = [{level: tables.at(one[level], keys) for level in one}
              for one in results.read(data, 'noisy', row)]
    if curves:
      _line(axis, curves, title, colour, marker='.')
  _label(axis, 'denoising z = (1 - t0) x + t0 eps', 'noise level t0 of the input',
          yscale='log')
  return figure


def _threshold(data):
  """The norm at which a descent stops: 3.5 on the 64 elements of a digit."""
  return 3.5 * {'digits': 8, 'fashion_mnist': 28}[data] / 8


CLASSES = {'digits': list('0123456789'),
           'fashion_mnist': ['T-shirt', 'trousers', 'pullover', 'dress', 'coat', 'sandal', 'shirt',
                             'sneaker', 'bag', 'boot']}


def _sheet(data, packed):
  return strips.pictured({name: abilities.unpack(strip) for name, strip in packed.items()},
                       scale=2 if data == 'digits' else 1)


def pictures(data: str) -> dict[str, np.ndarray]:
  """{name: picture}: partly noised records and their denoised samples; composed classes."""
  found, made = {}, {}
  for row in ('eqm', 'flow'):
    read = results.read(data, 'pictured', row)
    found |= {row: read[0]} if read else {}
  if len(found) == 2:
    named = {'record': found['eqm']['clean']}
    for level in ('0.25', '0.5', '0.75', '1.0'):
      eqm, flow = found['eqm'][level], found['flow'][level]
      named |= {f't0 = {level}:  input': eqm['start'],
               f'{level}:  EqM, |f| < {_threshold(data):g}': eqm['threshold'],
               f'{level}:  flow from t = 1': flow['at_1'], f'{level}:  flow from t0': flow['at_level']}
    made['partial_noise'] = _sheet(data, named)
  read = results.read(data, 'composed', 'eqm')
  if read:
    named = {}
    for pair, one in read[0].items():
      both = ' + '.join(CLASSES[data][int(y)] for y in pair.split('+'))
      for y, strip in one['pictures'].items():
        named[both if y == 'both' else CLASSES[data][int(y)]] = strip
    made['composition'] = _sheet(data, named)
  return made


# name: (the measurement and the row that the figure needs, draw).
FIGURES = {'decays': ('descended', 'linear', decays), 'evaluations': ('swept', 'eqm', evaluations),
           'adaptive': ('adaptive', 'eqm', adaptive), 'noisy': ('noisy', 'eqm', noisy)}


def main():
  for data in models.DATA:
    for name, (measurement, row, draw) in FIGURES.items():
      if results.read(data, measurement, row):
        path = results.FOLDER / f'{data}/{name}.png'
        draw(data).savefig(path, dpi=110)
        print(path)
    for name, picture in pictures(data).items():
      path = results.FOLDER / f'{data}/{name}.png'
      images.save_png(path, picture)
      print(path)
  README.write_text(tables.filled(README.read_text()))
  print(README)


if __name__ == '__main__':
  main()
