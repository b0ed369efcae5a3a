"""Samples of a branching class without guidance, with class guidance and autoguidance.

  python -m experiments.autoguidance

Prints, for each scale, the fraction of samples with a lower density than 99 % of the points of the
class, and recall, the fraction of the class that has a sample near by. Draws results/samples.png.
"""

import argparse
import pathlib

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot as plt
import numpy as np

from eqflow.evaluation import distances, report
from experiments import colours
from experiments.autoguidance import tree

PATH = pathlib.Path(__file__).parent / 'results/samples.png'
SCALES = 1.0, 1.5, 2.0, 3.0, 4.0
SHOWN = 3.0


def quality(x: np.ndarray, real: np.ndarray) -> dict[str, float]:
  """The fraction of unlikely samples, recall, and the mean log density."""
  least, found = np.quantile(tree.log_density(real, 0), 0.01), tree.log_density(x, 0)
  _, recall = distances.precision_recall(*map(distances.manifold, (real, x)))
  return {'unlikely': float((found < least).mean()), 'recall': recall,
          'mean log density': float(found.mean())}


def draw(real: np.ndarray, shown: dict[str, np.ndarray]) -> plt.Figure:
  """The class and samples of it in red, the other class in grey."""
  figure, axes = plt.subplots(1, 1 + len(shown), figsize=(13, 2.9), layout='constrained',
                              sharex=True, sharey=True)
  other = tree.points(1, 4_000, seed=5)
  for axis, (title, x) in zip(axes, {'the class': real, **shown}.items()):
    axis.scatter(*other.T, s=0.8, color='0.75', linewidths=0, label='points of the other class')
    axis.scatter(*x.T, s=1.2, color=colours.RED, linewidths=0, label='this class, or its samples')
    axis.set(title=title, xticks=[], yticks=[], aspect='equal', xlim=(-2.1, 2.1), ylim=(-1.6, 1.4))
  figure.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=2,
                frameon=False, markerscale=6)
  return figure


def main():
  argparse.ArgumentParser(description=__doc__.partition('\n')[0]).parse_args()
  networks, real = tree.networks(), tree.points(0, 4_000, seed=7)
  rows, shown = {'points of the class': quality(tree.points(0, 4_000, seed=8), real)}, {}
  for name, other in (('class guidance', 'unconditional'), ('autoguidance', 'weak')):
    for scale in SCALES:
      title = 'no guidance' if scale == 1 else f'{name}, {scale:g}'
      if title in rows:
        continue
      x = tree.sampled(networks['strong'], networks[other], scale)
      rows[title] = quality(x, real)
      if scale in (1, SHOWN):
        shown[title] = x
  print(report.table(rows))
  draw(real, shown).savefig(PATH, dpi=110)
  print(PATH)


if __name__ == '__main__':
  main()
