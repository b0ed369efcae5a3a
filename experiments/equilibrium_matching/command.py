"""The flags that the experiment's commands share."""

import argparse

from experiments.equilibrium_matching import models


def flags(doc: str, *, only: str) -> argparse.ArgumentParser:
  """--data, --only, --seeds and --runs."""
  parser = argparse.ArgumentParser(description=doc.partition('\n')[0])
  parser.add_argument('--data', default='digits', choices=models.DATA)
  parser.add_argument('--only', default='', help=f'{only}, divided by commas; all if unset')
  parser.add_argument('--seeds', default='0,1,2', help='of training')
  parser.add_argument('--runs', default=str(models.RUNS), help='the folder of trained networks')
  return parser


def chosen(only: str, names) -> list[str]:
  """The names asked for, in their order; SystemExit with what exists for one that is none."""
  wanted = only.split(',') if only else list(names)
  unknown = [name for name in wanted if name not in names]
  if unknown:
    raise SystemExit(f'--only={only}: no {unknown}; choose from {list(names)}')
  return [name for name in names if name in wanted]


def seeds(given: str) -> list[int]:
  """'0,1' -> [0, 1]."""
  return [int(seed) for seed in given.split(',')]
