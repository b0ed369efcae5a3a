"""Samples of networks trained on a leaking and on a rescaled table: docs/zero_terminal_snr.png."""

import matplotlib

matplotlib.use('Agg')

from eqflow import grids  # noqa: E402
from experiments import ROOT  # noqa: E402
from experiments.zero_terminal_snr import figures  # noqa: E402

PATH = ROOT / 'docs/zero_terminal_snr.png'


def main():
  x = figures.shaded_digits()
  made = figures.generated(figures.train(x, num_steps=2_500), grids.trailing(50))
  figures.draw_samples({'data': x, **made}).savefig(PATH, dpi=110)
  print(PATH)


if __name__ == '__main__':
  main()
