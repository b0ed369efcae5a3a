"""Orders of every solver on an exact mixture, weak orders on Gaussian data, the weights h_t.

The tests check bounds on these numbers; this prints the numbers.
"""

import itertools
from unittest import mock

import jax
import numpy as np

from eqflow import arrays, grids, outputs, processes, samplers
from tests import rows
from tests.laws import test_equivalence
from tests.laws.solvers import field
from tests.samplers import test_multistep, test_stochastic


def orders():
  for name, claimed, output, make in test_multistep.ORDERS:
    solver = make(processes.linear, output)
    found, errors = test_multistep.observed_orders(solver, output)
    yield f'{name}, order {claimed}', f'{found[-2]:.2f}, {found[-1]:.2f} (error {errors[-1]:.1e})'


def exact_starts():
  """Orders where the first step gets the exact outputs before it."""
  for name, (solver, _) in test_multistep.STARTED.items():
    found, error = test_multistep.orders_with_the_past(solver)
    yield f'{name}, exact start', f'{found[0]:.2f}, {found[1]:.2f} (error {error:.1e})'


def weak_orders():
  given = {}
  with mock.patch.object(arrays, 'noise_like', lambda keys, z: given['noise']):
    for name, process in itertools.product(test_stochastic.NOISY, ('linear', 'cosine')):
      order, bias = test_stochastic.weak_order(name, rows.PROCESSES[process], given)
      yield f'weak order of {name}, {process}', f'{order:.2f} (bias {bias[-1]:.1e})'


def row_equalities():
  """The largest difference between Euler along v and DDIM after 1 and 50 steps."""
  cases = itertools.product(('displacement', 'x', 'eps'), ('linear', 'cosine', 'variance_preserving'))
  found = {1: 0.0, 50: 0.0}
  for (name, process), steps in itertools.product(cases, found):
    process, grid = rows.PROCESSES[process], test_equivalence.GRID[:steps + 1]
    ends = [samplers.sample(solver, field, test_equivalence.Z, grid) for solver in (
        samplers.ddim(process, rows.OUTPUTS[name]),
        samplers.euler(process, rows.OUTPUTS[name], along=outputs.v))]
    error = float(abs(ends[0] - ends[1]).max() / abs(ends[0]).max())
    found[steps] = max(found[steps], error)
  return f'{found[1]:.1e}; {found[50]:.1e}'


def weights(churn):
  grid = grids.uniform(100)
  h = samplers.contributions(samplers.ddim(processes.cosine, outputs.v, churn=churn), grid)[:-1]
  at = np.argmin(h)
  return (f'sum {-h.sum():.5f}, largest {-h[at]:.6f} at t = {grid[at]:.2f}, {-h[0]:.6f} at t = 1, '
          f'{"all" if (h < 0).all() else "not all"} negative')


def main():
  print('| quantity | measured |\n|---|---|')
  for name, value in orders():
    print(f'| {name} | {value} |', flush=True)
  for name, value in exact_starts():
    print(f'| {name} | {value} |', flush=True)
  for name, value in weak_orders():
    print(f'| {name} | {value} |', flush=True)
  print(f'| Euler along v minus ddim of x, eps, displacement: 1; 50 steps | {row_equalities()} |')
  for churn in (0.0, 0.5):
    print(f'| weights of 100 v-predictions, churn {churn} | {weights(churn)} |')


if __name__ == '__main__':
  with jax.enable_x64(True):
    main()
