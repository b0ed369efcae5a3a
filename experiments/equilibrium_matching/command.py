"""The flags that the experiment's commands share."""

import argparse

from experiments.equilibrium_matching import models


def flags(doc: str, *, only: str) -> argparse.ArgumentParser:
  """--data, --only, --seeds and --runs."""
  parser = argparse.ArgumentParser(description=doc.partition('\n')[0])
  parser.add_argument('--data', default='digits', choices=models.DATA)
  parser.add_argument('--only', default='', help=f'{only}, separated by commas; default: all')
  parser.add_argument('--seeds', default='0,1,2', help='seeds of training')
  parser.add_argument('--runs', default=str(models.RUNS), help='folder of the trained networks')
  return parser


def chosen(only: str, names) -> list[str]:
  """The names in `only`, in the order of `names`; SystemExit for an unknown name."""
  wanted = only.split(',') if only else list(names)
  unknown = [name for name in wanted if name not in names]
  if unknown:
    raise SystemExit(f'--only={only}: {unknown} is unknown; choose from {list(names)}')
  return [name for name in names if name in wanted]


def seeds(given: str) -> list[int]:
  """'0,1' -> [0, 1]."""
  return [int(seed) for seed in given.split(',')]
