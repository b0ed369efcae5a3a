"""Trains every row of `models` with every seed; an interrupted run resumes from its checkpoint.

  python -m experiments.equilibrium_matching.train --data=digits [--only=eqm,flow] [--seeds=0,1]
"""

import pathlib
import time

from eqflow.commands.train import train
from eqflow.runs.run import run_of
from experiments.equilibrium_matching import command, models


def main():
  given = command.flags(__doc__, only='rows, by name').parse_args()
  runs = pathlib.Path(given.runs)
  rows = command.chosen(given.only, models.ROWS_OF[given.data])
  for seed in command.seeds(given.seeds):
    for row in rows:
      if models.trained(given.data, row, seed, runs):
        continue
      clock = time.perf_counter()
      train(run_of(models.config_of(given.data, row, seed), models.folder(given.data, row, seed, runs)))
      print(f'{given.data} {row} seed {seed}: {time.perf_counter() - clock:.0f} s', flush=True)


if __name__ == '__main__':
  main()
