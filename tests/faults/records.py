"""Which records a run has read that is killed often and restarted with other processes."""

import collections
import contextlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np

from eqflow.data import pipeline
from tests import ROOT
from tests.faults import reader

LIMIT = 300
PROCESSES, WORKERS = (1, 2, 4), (0, 1, 4)
TAG = 'EQFLOW_FAULT'   # An environment variable, which children of a killed process inherit.
SHARED = pathlib.Path('/dev/shm')


def start(folder: pathlib.Path, attempt: int, processes: int, workers: int,
          steps: int) -> list[subprocess.Popen]:
  """Starts the processes of one attempt, each in a process group of its own."""
  return [subprocess.Popen(
      [sys.executable, '-m', 'tests.faults.reader', f'--folder={folder}', f'--attempt={attempt}',
       f'--process={i}', f'--processes={processes}', f'--workers={workers}', f'--steps={steps}'],
      cwd=ROOT, env=os.environ | {TAG: str(folder)}, stdout=subprocess.DEVNULL,
      stderr=(folder / 'said.txt').open('a'), start_new_session=True) for i in range(processes)]


def kill(folder: pathlib.Path, wanted: int, seed: int, steps: int) -> dict[str, int]:
  """Kills a run of `steps` batches `wanted` times, with other processes each time; counts what it read.

  {'killed', 'processes left', 'files left', 'epochs', 'lost', 'repeated', 'misplaced'}: counts of
  records over all complete epochs, and of those that a single process would have read elsewhere.
  """
  chance, before = random.Random(seed), set(os.listdir(SHARED))
  found, spans = collections.Counter(), []
  for attempt in range(wanted + 1):
    first = reader.committed(folder)
    processes, workers = chance.choice(PROCESSES), chance.choice(WORKERS)
    running = start(folder, attempt, processes, workers, steps)
    last = attempt == wanted
    if not last:
      _wait(folder, attempt, running, chance)
      # Not at the same instant: some continue alone for a while.
      for process in chance.sample(running, len(running)):
        found['killed while reading'] += process.poll() is None and bool(
            reader.lines(reader.log_of(folder, attempt, 0)))
        os.killpg(process.pid, signal.SIGKILL)
        time.sleep(chance.choice((0, 0, 0.02)))
    for process in running:
      code = process.wait(timeout=LIMIT)
      if last and code:
        raise RuntimeError((folder / 'said.txt').read_text()[-3000:])
    found['killed'] += not last
    found['processes left'] += len(left(folder))
    found['files left'] += _cleaned(before)
    spans.append((attempt, processes, workers, first))
  return dict(found) | judged(folder, spans, steps)


def _wait(folder, attempt, running, chance):
  """Waits for a random instant of starting or, mostly, of reading."""
  clock = time.perf_counter()
  if chance.random() < 0.2:
    time.sleep(chance.uniform(0, 2))
    return
  while not reader.lines(reader.log_of(folder, attempt, 0)):
    time.sleep(0.01)
    if time.perf_counter() - clock > LIMIT or all(process.poll() for process in running):
      raise RuntimeError((folder / 'said.txt').read_text()[-3000:])
  time.sleep(chance.uniform(0, 0.3))


def judged(folder: pathlib.Path, spans: list[tuple], steps: int) -> dict[str, int]:
  """Compares what was read for committed steps with what one process without workers reads."""
  index, records, mixes = [], [], set()
  ends = [span[3] for span in spans[1:]] + [steps]
  for (attempt, processes, workers, first), end in zip(spans, ends):
    if end > first:
      mixes.add((processes, workers))
    shares = [{line['step']: line for line in reader.lines(reader.log_of(folder, attempt, i))}
              for i in range(processes)]
    for step in range(first, end):
      # Process i has the rows i, i + processes, ... of the batch.
      for key, into in (('index', index), ('records', records)):
        into += [row for rows in zip(*(share[step][key] for share in shares)) for row in rows]
  alone = pipeline.batches(reader.source(), seed=reader.SEED, batch=reader.BATCH)
  single = np.concatenate([next(alone)['x'][:, 0] for _ in range(steps)]).astype(int)
  n, counts = reader.RECORDS, collections.Counter()
  for epoch in range(len(records) // n):
    times = np.bincount(records[epoch * n:(epoch + 1) * n], minlength=n)
    counts.update(epochs=1, lost=int((times == 0).sum()), repeated=int((times > 1).sum()))
  same = np.asarray(records) == single if len(records) == len(single) else np.zeros(1, bool)
  return dict(counts) | {
      'misplaced': int((~same).sum()), 'miscounted': int((np.asarray(index) != np.arange(
          len(index))).sum()), 'mixes': len(mixes)}


def left(folder: pathlib.Path) -> list[int]:
  """The processes of an attempt that still run a second after it was killed."""
  tag, found = f'{TAG}={folder}'.encode(), []
  for _ in range(10):
    found = [int(path.name) for path in pathlib.Path('/proc').iterdir()
             if path.name.isdecimal() and tag in _environment(path)]
    if not found:
      break
    time.sleep(0.1)
  return found


def _environment(path):
  try:
    # A zombie has none.
    return (path / 'environ').read_bytes()
  except OSError:
    return b''


def _cleaned(before):
  """Deletes batches of these records that nobody owns from shared memory; returns how many."""
  sizes = {4 * reader.WIDTH * reader.BATCH // count for count in PROCESSES}
  new = []
  for path in SHARED.iterdir():
    # Other programs have files there too.
    with contextlib.suppress(OSError):
      if path.name not in before and path.stat().st_size in sizes:
        new.append(path)
  for path in new:
    path.unlink(missing_ok=True)
  return len(new)
