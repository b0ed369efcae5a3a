"""One process of a run, without a network: it reads its rows of the batches and logs them.

  python -m tests.faults.reader --folder=DIR --attempt=0 --process=0 --processes=2 --workers=1

Every few steps, once all processes are there, the first commits: a restart resumes from there.
"""

import argparse
import contextlib
import json
import pathlib
import time

import numpy as np

from eqflow import files
from eqflow.data import pipeline
from eqflow.data.records import InMemory, Source

# The size of a record, so that batches left in shared memory can be recognized.
WIDTH = 509
# An epoch is not a whole number of batches, and up to four processes share a batch.
RECORDS, BATCH, EVERY, SEED = 101, 8, 5, 7
PAUSE = 0.01   # a step, in seconds


def source() -> Source:
  """Records filled with their own index."""
  x = np.repeat(np.arange(RECORDS, dtype=np.float32)[:, np.newaxis], WIDTH, axis=1)
  return Source(InMemory(x, np.zeros(RECORDS, np.int32)), (WIDTH,), 0, 'numbers')


def committed(folder: pathlib.Path) -> int:
  """The step that a run in `folder` resumes from."""
  path = folder / 'committed.json'
  return json.loads(path.read_text())['step'] if path.exists() else 0


def log_of(folder: pathlib.Path, attempt: int, process: int) -> pathlib.Path:
  """Where a process of an attempt logs its steps, a line each."""
  return folder / f'log-{attempt}-{process}.jsonl'


def lines(path: pathlib.Path) -> list[dict]:
  """The lines of a log, without one that a kill has truncated."""
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line[-1] == '\n']


def read(folder: pathlib.Path, attempt: int, process: int, processes: int, workers: int,
         steps: int) -> None:
  """Reads from the committed step to `steps`, and logs {'step', 'index', 'records'} of each batch."""
  first = committed(folder)
  batches = pipeline.batches(source(), seed=SEED, batch=BATCH, start=first * BATCH,
                             process_index=process, process_count=processes, workers=workers)
  with log_of(folder, attempt, process).open('a') as log, contextlib.closing(batches):
    for step in range(first, steps):
      batch = next(batches)
      log.write(json.dumps({'step': step, 'index': batch['index'].tolist(),
                            'records': batch['x'][:, 0].astype(int).tolist()}) + '\n')
      log.flush()
      time.sleep(PAUSE)
      if process == 0 and ((step + 1) % EVERY == 0 or step + 1 == steps):
        _commit(folder, attempt, processes, step + 1)


def _commit(folder, attempt, processes, step):
  # As a checkpoint is: no process has its share of it before it is there.
  for other in range(processes):
    while not any(line['step'] == step - 1 for line in lines(log_of(folder, attempt, other))):
      time.sleep(0.002)
  with files.replacing(folder / 'committed.json') as file:
    file.write(json.dumps({'step': step, 'attempt': attempt}).encode())


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--folder', required=True, type=pathlib.Path)
  for name in ('attempt', 'process', 'processes', 'workers', 'steps'):
    parser.add_argument(f'--{name}', required=True, type=int)
  given = parser.parse_args()
  read(given.folder, given.attempt, given.process, given.processes, given.workers, given.steps)


if __name__ == '__main__':
  main()
