"""Redraws the stored results: distances by EMA width (results/<data>.png), magnitudes
(results/magnitudes.png), and the weights of power-function EMAs (docs/posthoc_ema.png).

  python -m experiments.posthoc_ema.figures
"""

import json

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot as plt
import numpy as np

from experiments import ROOT, colours
from experiments.equilibrium_matching.figures import LABEL
from experiments.posthoc_ema import magnitudes, quality, widths


def curves(data: str) -> dict[tuple[float, int], np.ndarray]:
  """{(learning rate, examples): distances [seeds, stds]} of the stored results."""
  found = {}
  for rate in quality.DATA[data][-1]:
    for seed in quality.SEEDS:
      path = quality.path_of(data, rate, seed)
      if path.exists():
        for examples, row in json.loads(path.read_text()).items():
          found.setdefault((rate, int(examples)), []).append([row[repr(std)] for std in quality.STDS])
  return {key: np.array(rows) for key, rows in found.items()}


def draw(found: dict[tuple[float, int], np.ndarray]) -> plt.Figure:
  """The mean and the range over seeds; a dot is the minimum of the mean."""
  figure, axis = plt.subplots(figsize=(6, 4.6), layout='constrained')
  rates, lengths = (sorted({key[i] for key in found}) for i in (0, 1))
  for (rate, examples), y in found.items():
    colour, mean = colours.CYCLE[rates.index(rate)], y.mean(0)
    axis.plot(quality.STDS, mean, color=colour, linestyle=('--', '-')[lengths.index(examples)],
              label=f'learning rate {rate:g}, {examples:,} examples')
    axis.fill_between(quality.STDS, y.min(0), y.max(0), color=colour, alpha=0.2, linewidth=0)
    axis.plot(quality.STDS[mean.argmin()], mean.min(), 'o', color=colour)
  axis.scatter([], [], color=colours.GREY, label='minimum of the mean over seeds')
  axis.fill_between([], [], color=colours.GREY, alpha=0.3, label='range over seeds')
  axis.set(xlabel='std of the EMA, relative to the training time', ylabel=LABEL, yscale='log')
  low, high = axis.get_ylim()
  ticks = [a * 10.0**b for b in range(-2, 3) for a in (1, 2, 3, 5) if low < a * 10.0**b < high]
  axis.set_yticks(ticks, [f'{tick:g}' for tick in ticks])
  axis.set_yticks([], minor=True)
  axis.grid(alpha=0.25)
  figure.legend(loc='outside lower center', ncols=2, frameon=False, fontsize=8)
  return figure


NAMES = {'all': 'all parts', 'not_forced': 'weights normalized, not forced',
         'free': 'weights not normalized', 'none': 'no parts'}


def draw_magnitudes(found: dict[str, dict]) -> plt.Figure:
  """RMS of the activations and weights of blocks during training: median and range."""
  figure, axes = plt.subplots(1, 3, figsize=(12, 3.9), layout='constrained')
  # Dashes above a wide line: the first two coincide in two panels.
  styles = [dict(linewidth=1.6, linestyle=(0, (3, 2)), zorder=4), dict(linewidth=3.5, alpha=0.7),
            dict(linewidth=1.6), dict(linewidth=1.6)]
  for colour, style, (parts, row) in zip(colours.CYCLE, styles, found.items()):
    for axis, kind in zip(axes, ('activations', 'weights')):
      # Blocks only: the output layer has a learned gain.
      y = np.array([values for name, values in row[kind].items() if name.startswith(('enc', 'dec'))])
      axis.plot(row['examples'], np.median(y, axis=0), color=colour, label=NAMES[parts], **style)
      for edge in (y.min(0), y.max(0)):
        axis.plot(row['examples'], edge, color=colour, linewidth=1, linestyle=(0, (1, 2)))
      axis.set(title=f'{kind}: median, and range (dotted)', ylabel='RMS of a block')
    axes[2].plot(row['examples'][1:], row['losses'], color=colour, **style)
  axes[2].set(title='loss with learned uncertainty', ylabel='mean since the last point')
  for axis in axes:
    axis.set(xlabel='thousands of examples', xticks=[0, 40_000, 80_000], xticklabels=['0', '40', '80'])
    axis.grid(alpha=0.25)
  figure.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=4,
                frameon=False)
  return figure


def main():
  drawn = {ROOT / 'docs/posthoc_ema.png': widths.draw_profiles((0.05, 0.1, 0.15, 0.25), 24)}
  if magnitudes.read():
    drawn[quality.RESULTS / 'magnitudes.png'] = draw_magnitudes(magnitudes.read())
  for data in quality.DATA:
    found = curves(data)
    if not found:
      continue
    for (rate, examples), y in found.items():
      best = [quality.STDS[i] for i in y.argmin(1)]
      print(f'{data}, learning rate {rate:g}, {examples:,} examples: minimum {y.min(1).mean():.3f} +- '
            f'{y.min(1).std(ddof=1) if len(y) > 1 else np.nan:.3f} at std {best}')
    drawn[quality.RESULTS / f'{data}.png'] = draw(found)
  for path, figure in drawn.items():
    figure.savefig(path, dpi=110)
    print(path)


if __name__ == '__main__':
  main()
