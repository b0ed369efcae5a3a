"""The landscapes of a wide and of a narrow ring of points: results/landscapes.png."""

import pathlib

import matplotlib

matplotlib.use('Agg')

from experiments.landscape import figures  # noqa: E402

PATH = pathlib.Path(__file__).parent / 'results/landscapes.png'


def main():
  ends = {radius: figures.descended(figures.ring(radius), 300, 300)
          for radius in (figures.FAR, figures.NEAR)}
  figures.draw_landscapes(ends).savefig(PATH, dpi=76)
  print(PATH)


if __name__ == '__main__':
  main()
