"""Measures every finished training; stored measurements are not repeated.

  python -m experiments.equilibrium_matching --data=digits [--only=adaptive,noisy] [--seeds=0,1]
"""

import pathlib
import time

from experiments.equilibrium_matching import (
    abilities, command, descents, flows, measure, models, results)

HELDOUT = ['heldout', 'heldout_twice', 'heldout_gain_1']
BLIND = [row for row in models.ROWS if row not in ('flow', 'eqm_time', *HELDOUT)]
FLOWS = ['flow', 'blind_flow']
# name: (function of a model and its row, rows), the most important first.
MEASUREMENTS = {
    'adaptive':   (descents.adaptive, ['eqm']),
    'composed':   (abilities.composed, ['eqm', 'dot']),
    'pictured':   (abilities.pictured, ['eqm', *FLOWS]),
    'noisy':      (flows.noisy, [*flows.DESCENDED, *FLOWS]),
    'detected':   (abilities.detected, HELDOUT),
    'ode':        (flows.ode, ['eqm', *FLOWS, 'eqm_time']),
    'descended':  (descents.descended, BLIND),
    'stochastic': (flows.stochastic, ['flow']),
    'swept':      (descents.swept, ['eqm']),
    'step_sizes': (flows.step_sizes, FLOWS),
    'timed':      (abilities.timed, ['eqm']),
    'optimized':  (descents.optimized, ['eqm']),
}


def main():
  given = command.flags(__doc__, only='measurements').parse_args()
  runs = pathlib.Path(given.runs)
  for seed in command.seeds(given.seeds):
    for name in command.chosen(given.only, MEASUREMENTS):
      function, rows = MEASUREMENTS[name]
      for row in [row for row in rows if row in models.ROWS_OF[given.data]]:
        target = results.path(given.data, name, row, seed)
        if target.exists() or not models.trained(given.data, row, seed, runs):
          continue
        clock = time.perf_counter()
        results.write(target, function(measure.load(given.data, row, seed, runs), row))
        print(f'{target.relative_to(results.FOLDER)}: {time.perf_counter() - clock:.0f} s', flush=True)


if __name__ == '__main__':
  main()
