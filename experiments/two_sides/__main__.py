"""Runs the code cells of colabs/two_sides.ipynb and saves the figures that they label.

  python -m experiments.two_sides
"""

import json
import pathlib

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot as plt

from experiments import ROOT

FOLDER = pathlib.Path(__file__).parent / 'results'
# The README of the project shows one of them.
SHOWN = {'scaling': ROOT / 'docs/two_sides_scaling.png'}


def main():
  names = {}
  for cell in json.loads((ROOT / 'colabs/two_sides.ipynb').read_text())['cells']:
    if cell['cell_type'] == 'code':
      exec(''.join(cell['source']), names)
  for label in filter(None, plt.get_figlabels()):
    path = SHOWN.get(label, FOLDER / f'{label}.png')
    plt.figure(label).savefig(path, dpi=76)
    print(path)


if __name__ == '__main__':
  main()
