"""One-step and 50-step samples of networks for eps, x, v and u: docs/blind_spots.png."""

import matplotlib

matplotlib.use('Agg')

from experiments import ROOT  # noqa: E402
from experiments.blind_spots import figures  # noqa: E402

PATH = ROOT / 'docs/blind_spots.png'


def main():
  x = figures.digits()
  predicts = figures.train(x, num_steps=4_000)
  z = figures.noise(64)
  figures.draw_samples(
      x, z, figures.best(x, z), figures.returned(predicts, z), figures.sampled(predicts, z, 1),
      figures.sampled(predicts, z, 50)).savefig(PATH, dpi=110)
  print(PATH)


if __name__ == '__main__':
  main()
