"""The plane at one t, and digits descended from noise: docs/plane.png, the README's first picture.

`python -m experiments.plane` draws the stored samples. With --workdir=runs/digits, the run of
`make demo`, it samples that model first.
"""

import argparse
import pathlib

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot as plt
import numpy as np

from eqflow import outputs, processes
from experiments import ROOT, colours

PATH, STORED = ROOT / 'docs/plane.png', pathlib.Path(__file__).parent / 'results/descent.npz'
T = 0.7
# Name, output, colour, where the label is relative to the tip.
VECTORS = [
    ('x', outputs.x, colours.BLUE, (0.06, -0.03)),
    ('eps', outputs.eps, colours.RED, (0.06, 0.05)),
    ('v', outputs.v, colours.GREEN, (-0.14, -0.02)),
    ('u = eps $-$ x', outputs.u, colours.PINK, (-0.3, 0.08)),
    ('score', outputs.score, '#b8860b', (0.06, 0.0)),
]


def draw_plane(axis):
  for name, output, colour, (right, up) in VECTORS:
    x, eps = map(float, output(processes.linear, T))
    axis.annotate('', (x, eps), (0, 0), arrowprops=dict(
        arrowstyle='-|>,head_width=.28,head_length=.55', color=colour, lw=2.4, shrinkA=0, shrinkB=0))
    axis.text(x + right, eps + up, name, color=colour, fontsize=13)
  path = np.array([processes.linear(t) for t in np.linspace(0, 1, 50)])
  axis.plot(*path.T, color='#555555', linewidth=1.2, linestyle=(0, (4, 3)))
  state = processes.linear(T)
  axis.annotate('', state, (0, 0), arrowprops=dict(
      arrowstyle='-|>,head_width=.28,head_length=.55', color='black', lw=2.4, shrinkA=0, shrinkB=0))
  axis.text(state.x + 0.05, state.eps + 0.03, r'z = $\alpha$ x + $\sigma$ eps', fontsize=13)
  axis.text(0.95, -0.2, 't = 0: data', color='#555555', fontsize=11, ha='center')
  axis.text(0.66, 0.42, 't', color='#555555', fontsize=11)
  axis.axhline(0, color='#cccccc', linewidth=0.8, zorder=0)
  axis.axvline(0, color='#cccccc', linewidth=0.8, zorder=0)
  axis.set(xlim=(-1.4, 1.75), ylim=(-1.5, 1.25), aspect='equal')
  axis.axis('off')
  axis.set_title('Every prediction is a vector\nin the plane of data x and noise eps',
                 fontsize=13)


def draw_digits(axis, frames, steps):
  # [steps, digits, 8, 8, 1] -> one image, a line of two pixels between digits.
  framed = np.pad(np.clip(frames[..., 0], -1, 1), ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=1)
  axis.imshow(np.concatenate(np.concatenate(framed, axis=2), axis=0), cmap='gray', vmin=-1, vmax=1)
  axis.set_xticks(9 * np.arange(len(steps)) + 3.5, steps, fontsize=11)
  axis.set_yticks([])
  axis.tick_params(length=0)
  axis.spines[:].set_visible(False)
  axis.set_xlabel('gradient steps', fontsize=12)
  axis.set_title('Noise descends to digits: Equilibrium Matching,\n'
                 'trained in 2 minutes on two CPU cores', fontsize=13)


def main(workdir):
  if workdir:
    from experiments.plane import digits
    digits.sample(workdir, STORED)
  with np.load(STORED) as stored:
    frames, steps = stored['frames'], stored['steps']
  figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout='constrained',
                                       width_ratios=[1, 1.25])
  draw_plane(left)
  draw_digits(right, frames, steps)
  figure.savefig(PATH, dpi=110)
  print(PATH)


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workdir', type=pathlib.Path, help='the run of make demo')
  main(parser.parse_args().workdir)
