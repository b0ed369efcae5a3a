"""Solvers x repeated times, and solvers x processes x outputs x derivatives: the two laws in full.

  python -m experiments.laws.solvers [--results=FOLDER]

A row is stored in FOLDER, by default runs/laws, when it is measured; the same command continues.
"""

import argparse
import itertools
import pathlib

import jax

from tests.faults import results
from tests.laws import test_gradients, test_repeated_times
from tests.laws.solvers import SOLVERS

WAYS = 'eager', 'jit', 'vmap'


def _crossed(some, others):
  """All pairs, so ordered that the first of them have every one of `some` and of `others`."""
  some = list(some)
  return [(some[(i + shift) % len(some)], other) for shift in range(len(some))
          for i, other in enumerate(others)]


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--results', type=pathlib.Path, default=pathlib.Path('runs/laws'))
  folder = parser.parse_args().results
  repeats = list(itertools.product(WAYS, SOLVERS))
  derivatives = _crossed(test_gradients.PROCESSES, [name for name in SOLVERS if name != 'adaptive'])

  def repeated(i, wanted):
    way, name = repeats[i]
    return dict(what=f'repeated times, {way}', solver=name, **test_repeated_times.law(name, way))

  def differentiated(i, wanted):
    process, name = derivatives[i]
    return dict(what=f'derivatives, {process}', solver=name, **test_gradients.law(name, process))

  found = results.resume('repeats', len(repeats), repeated, folder=folder)
  found += results.resume('derivatives', len(derivatives), differentiated, folder=folder)
  print('| law | solvers | cases | wrong | not finite | worst |\n|---|---|---|---|---|---|')
  for what in dict.fromkeys(row['what'] for row in found):
    rows = [row for row in found if row['what'] == what]
    total = lambda *keys: sum(row.get(key, 0) for row in rows for key in keys)
    worst = max(row.get('worst', 0) for row in rows)
    print(f'| {what} | {len(rows)} | {total("cases")} | {total("wrong", "beyond")} | '
          f'{total("not finite")} | {worst:.1e} |')


if __name__ == '__main__':
  with jax.enable_x64(True):
    main()
