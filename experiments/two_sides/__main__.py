"""docs/two_sides_*.png: the figures that the cells of colabs/two_sides.ipynb draw."""

import json

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot as plt

from experiments import ROOT


def main():
  names = {}
  for cell in json.loads((ROOT / 'colabs/two_sides.ipynb').read_text())['cells']:
    if cell['cell_type'] == 'code':
      exec(''.join(cell['source']), names)
  for label in filter(None, plt.get_figlabels()):
    path = ROOT / f'docs/{label}.png'
    plt.figure(label).savefig(path, dpi=110)
    print(path)


if __name__ == '__main__':
  main()
