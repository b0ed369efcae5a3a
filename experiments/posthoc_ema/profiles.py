"""|reconstruction - tracked average|/|tracked average| for many stds and three dtypes.

  python -m experiments.posthoc_ema.profiles

Prints the error that `posthoc_ema.expected_error` predicts and the measured one, for 4,096 updates
and 64 snapshots of two averages: with basis vectors as parameters, so that an average is its own
profile, and with random walks near 1. Also prints the realised std by batch size and interval.
"""

import argparse

import jax
from jax import numpy as jnp
import numpy as np

from eqflow import posthoc_ema
from tests import averages

UPDATES, SNAPSHOTS, IN = 4096, 64, (0.05, 0.1)
TIMES = np.repeat(np.arange(1, SNAPSHOTS + 1) * (UPDATES // SNAPSHOTS), len(IN))
STDS = np.tile(IN, SNAPSHOTS)
OUT = (0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.135, 0.15, 0.18, 0.2, 0.22, 0.25)
WALKS = 256


def walks(updates):
  """Parameters [updates, WALKS] that start near 1 and move by about 1."""
  rng = np.random.default_rng(0)
  steps = rng.normal(size=(updates, WALKS)) / np.sqrt(updates)
  path = jnp.asarray(1 + steps.cumsum(0))
  return lambda examples, k: path[k]


def reconstructions(tracked, dtype, stds):
  """[expected error], [relative distance], [norm of x], at the last snapshot stored in `dtype`."""
  x = posthoc_ema.solve(TIMES, STDS, UPDATES, stds)
  stored = (tracked[std][i].astype(dtype) for i in range(SNAPSHOTS) for std in IN)
  found = posthoc_ema.reconstruct(stored, x)
  distance = [np.linalg.norm(sums - tracked[std][-1]) / np.linalg.norm(tracked[std][-1])
              for sums, std in zip(found, stds)]
  return posthoc_ema.expected_error(x, TIMES, STDS, UPDATES, stds), distance, np.linalg.norm(x, axis=0)


def realised(batch, every, stds, total=2**20):
  """[the std of t/total under each average's weights], from the averages of t and t^2."""
  moments = averages.track(stds, total // (batch * every), batch=batch, every=every,
                           params=lambda t, k: (t / total) ** jnp.arange(1.0, 3.0))
  return [np.sqrt(moments[std][-1, 1] - moments[std][-1, 0] ** 2) for std in stds]


def main():
  makes = {'basis': averages.basis, 'walks': walks}
  with jax.enable_x64(True):
    tables = {name: averages.track(sorted({*IN, *OUT}), UPDATES, batch=1, every=1, chunks=SNAPSHOTS,
                                   params=make(UPDATES)) for name, make in makes.items()}
  dtypes = {'float64': np.float64, 'float32': np.float32, 'bfloat16': jnp.bfloat16}
  found = {(name, dtype): reconstructions(table, kind, OUT)
           for name, table in tables.items() for dtype, kind in dtypes.items()}
  print(f'{UPDATES} updates, {SNAPSHOTS} snapshots of std {IN}; relative L2 distances\n')
  columns = ['std', '‖x‖', 'expected'] + [f'{name} {dtype}' for name, dtype in found]
  print('| ' + ' | '.join(columns) + ' |\n|' + '---|' * len(columns))
  expected, _, norm = found['basis', 'float64']
  for i, std in enumerate(OUT):
    numbers = [expected[i]] + [distance[i] for _, distance, _ in found.values()]
    print(f'| {std} | {norm[i]:.2f} | ' + ' | '.join(f'{number:.1e}' for number in numbers) + ' |')
  stds = (0.05, 0.1, 0.2)
  print('\n| batch | every | ' + ' | '.join(f'realised {std}' for std in stds) + ' |\n|' + '---|' * 5)
  with jax.enable_x64(True):
    for batch, every in ((64, 1), (64, 4), (64, 10), (256, 1), (256, 4)):
      print(f'| {batch} | {every} | '
            + ' | '.join(f'{std:.5f}' for std in realised(batch, every, stds)) + ' |')


if __name__ == '__main__':
  argparse.ArgumentParser(description=__doc__.split('\n')[0]).parse_args()
  main()
