"""Kills, stops, damages and starves small runs, and counts what was lost.

  python -m tests.faults [--kills=20] [--points=9] [--only=kills,points] [--results=FOLDER]

Each case is stored in FOLDER, by default runs/faults, as soon as it ends. The same command, or one that
asks for more cases, continues from there. With --results=tests/faults/results the table of README.md is
updated too.
"""

import argparse
import os
import pathlib
import random
import tempfile

from tests.faults import (
    commands, configs, damages, datasets, disk, hostile, images, kills, logs, nans, paths, public,
    records, results, startup, states, streams, tables, victim)

# The default numbers of cases.
SHORT = {'kills': 20, 'points': len(victim.POINTS), 'signals': 2 * len(victim.PHASES), 'damages': 100,
         'configs': 100, 'nans': 24, 'disk': len(disk.KINDS), 'records': 10, 'logs': 32,
         'streams': len(streams.KINDS),
         'paths': 2 * len(paths.NAMES), 'commands': 300, 'startup': 3,
         'public': len(public.LAWS), 'datasets': len(datasets.CASES), 'images': len(images.CASES),
         'hostile': len(hostile.CASES)}
OF_VICTIM = 'kills', 'points', 'signals', 'damages'
CHAINED = 10   # kills of one run of records


def measures(folder: pathlib.Path, seed: int) -> dict:
  """{measurement: (case(i, wanted) -> row, what is counted)}; an undisturbed run comes first."""
  whole = {}

  def unbroken(*flags):
    # The first fills the compilation cache; the second measures how long a run takes.
    if flags not in whole:
      places = [folder / f'{name}{"".join(flags)}' for name in ('whole', 'again')]
      seconds = [kills.finish(place, *flags) for place in places][1]
      expected, other = (states.digest(place) for place in places)
      if other != expected:
        raise RuntimeError('two undisturbed runs ended in different states')
      whole[flags] = expected, seconds
    return whole[flags]

  def killed(i, wanted):
    # Every other run is a short one, which allows more kills in the same time.
    what, flags = (('at random, moons', ['--short']) if i % 2 else ('at random, digits', []))
    return dict(what=what, **kills.chain(folder, *unbroken(*flags), wanted, f'{seed} {i}', *flags))

  def at_point(i, wanted):
    point, count = kills.point_of(i)
    return dict(what=point, **kills.at_point(
        folder, unbroken('--short')[0], point, count, '--short'))

  def stopped(i, wanted):
    phase, number = kills.phase_of(i)
    return dict(what=phase, **kills.stopped(folder, unbroken()[0], phase, number))

  def damaged(i, wanted):
    unbroken()
    whole.setdefault('like', damages.like())
    kind = list(damages.KINDS)[i % len(damages.KINDS)]
    return dict(what=kind, **damages.damaged(
        folder, folder / 'whole', whole['like'], kind, random.Random(f'{seed} {i}')))

  def starved(i, wanted):
    whole.setdefault('disk', None) or whole.update(disk=disk.unbroken(folder / 'disk'))
    kind = list(disk.KINDS)[i % len(disk.KINDS)]
    return dict(what=kind, **disk.hurt(folder / f'disk{i}', whole['disk'], kind))

  def poisoned(i, wanted):
    # Compiles one step for each policy, and then runs many cases.
    return [dict(what=what, **row) for most in (0, 3) for what, row in nans.poison(
        folder, most, -(-wanted // 2), seed + i).items()]

  def read(i, wanted):
    place = folder / f'records{i}'
    place.mkdir()
    count = min(wanted, CHAINED)
    return dict(what='records', **records.kill(place, count, f'{seed} {i}', 60 * (count + 1)))

  def logged(i, wanted):
    # Five kills for three signals.
    unbroken('--short')
    whole = folder / 'whole--short'
    signals = i % 8 in (2, 4, 7)
    found = logs.chain(folder, whole, logs.trained_for(whole), wanted, signals, f'{seed} {i}')
    return dict(what='stopped' if signals else 'killed', interrupted=found['killed'] + found['stopped'],
                lines=found['lines'], changed=found['changed'])

  def silenced(i, wanted):
    whole.setdefault('disk', None) or whole.update(disk=disk.unbroken(folder / 'disk'))
    kind = list(streams.KINDS)[i % len(streams.KINDS)]
    return dict(what=kind, **streams.without(folder / f'streams{i}', whole['disk'], kind))

  return {'kills': (killed, 'killed'), 'points': (at_point, ''), 'signals': (stopped, ''),
          'logs': (logged, 'interrupted'), 'streams': (silenced, ''),
          'damages': (damaged, ''), 'disk': (starved, ''), 'records': (read, 'killed'),
          'paths': (lambda i, wanted: paths.run(folder, i), ''),
          'commands': (lambda i, wanted: commands.reject(folder, wanted, seed + i), 'cases'),
          'startup': (lambda i, wanted: startup.measure(), ''),
          'configs': (lambda i, wanted: configs.reject(folder, wanted, seed + i), 'cases'),
          'nans': (poisoned, 'cases'),
          'public': (lambda i, wanted: public.judged(list(public.LAWS)[i]), ''),
          'datasets': (lambda i, wanted: datasets.change(folder / 'x', *datasets.CASES[i]), 'cases'),
          'images': (lambda i, wanted: images.case(folder / 'odd', i), 'cases'),
          'hostile': (lambda i, wanted: hostile.cases(folder, i, min(wanted, 10)), 'cases')}


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  for name, count in SHORT.items():
    parser.add_argument(f'--{name}', type=int, default=count)
  parser.add_argument('--only', default=','.join(SHORT), help='measurements, with commas between')
  parser.add_argument('--results', type=pathlib.Path, default=pathlib.Path('runs/faults'))
  parser.add_argument('--seed', type=int, default=0)
  given = parser.parse_args()
  names = given.only.split(',')
  if not set(names) <= set(SHORT):
    parser.error(f'--only={given.only}: choose from {",".join(SHORT)}')
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    # Compile once for all runs.
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', f'{folder}/compiled')
    os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
    os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '0')
    found = measures(folder, given.seed)
    for name in names:
      case, counted = found[name]
      before = len(results.read(name, given.results))
      rows = results.resume(name, getattr(given, name), case, counted=counted, folder=given.results)
      print(f'{name}: {len(rows) - before} new rows, {before} were stored in {given.results}')
      for what, row in results.summed(rows).items():
        print(f'{what}: {row}', flush=True)
  if given.results.resolve() == results.FOLDER.resolve():
    tables.README.write_text(tables.filled(tables.README.read_text()))


if __name__ == '__main__':
  main()
