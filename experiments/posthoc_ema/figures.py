"""Draws the stored distances by width of the average: docs/posthoc_ema_<data>.png.

  python -m experiments.posthoc_ema.figures
"""

import json

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot as plt
import numpy as np

from experiments import ROOT
from experiments.equilibrium_matching.figures import COLOURS, LABEL
from experiments.posthoc_ema import quality


def curves(data: str) -> dict[tuple[float, int], np.ndarray]:
  """{(rate, examples): distances [seeds, stds]} of what is measured."""
  found = {}
  for rate in quality.DATA[data][2]:
    for seed in quality.SEEDS:
      path = quality.path_of(data, rate, seed)
      if path.exists():
        for examples, row in json.loads(path.read_text()).items():
          found.setdefault((rate, int(examples)), []).append([row[repr(std)] for std in quality.STDS])
  return {key: np.array(rows) for key, rows in found.items()}


def draw(found: dict[tuple[float, int], np.ndarray]) -> plt.Figure:
  """The mean over seeds in its range, the least of each curve marked."""
  figure, axis = plt.subplots(figsize=(6, 4), layout='constrained')
  rates, lengths = (sorted({key[i] for key in found}) for i in (0, 1))
  for (rate, examples), y in found.items():
    colour, mean = COLOURS[rates.index(rate)], y.mean(0)
    axis.plot(quality.STDS, mean, color=colour, linestyle=('--', '-')[lengths.index(examples)],
              label=f'rate {rate:g}, {examples:,} examples')
    axis.fill_between(quality.STDS, y.min(0), y.max(0), color=colour, alpha=0.2, linewidth=0)
    axis.plot(quality.STDS[mean.argmin()], mean.min(), 'o', color=colour)
  axis.set(xlabel='std of the average, relative to the time trained', ylabel=LABEL, yscale='log')
  axis.grid(alpha=0.25)
  axis.legend(frameon=False, fontsize=8)
  return figure


def main():
  for data in quality.DATA:
    found = curves(data)
    if not found:
      continue
    for (rate, examples), y in found.items():
      best = [quality.STDS[i] for i in y.argmin(1)]
      print(f'{data}, rate {rate:g}, {examples:,} examples: least {y.min(1).mean():.3f} +- '
            f'{y.min(1).std(ddof=1) if len(y) > 1 else np.nan:.3f} at std {best}')
    path = ROOT / f'docs/posthoc_ema_{data}.png'
    draw(found).savefig(path, dpi=110)
    print(path)


if __name__ == '__main__':
  main()
