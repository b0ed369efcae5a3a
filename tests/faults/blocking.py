"""The percentage of wall time for which saves block a training, with one save a minute.

  python -m tests.faults.blocking [--minutes=5] [--interval=60] [--width=768 --depth=3 --heads=12]

The step trains the digits' config with a larger network, repeated on one batch; state, saves and
ledger are as in a run. A save is written in the background: what counts is copying the state,
starting to write, and waiting for the write before it.
"""

import argparse
import contextlib
import pathlib
import tempfile
import time

import jax

from eqflow.config import recipes
from eqflow.data import pipeline
from eqflow.runs import dataset
from eqflow.training import checkpoint, sharding, train_state, train_step
from eqflow.training.runtime import ledger
from tests.faults import victim


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  for name, default in (('width', 768), ('depth', 3), ('heads', 12), ('batch', 16)):
    parser.add_argument(f'--{name}', type=int, default=default)
  parser.add_argument('--minutes', type=float, default=5.0)
  parser.add_argument('--interval', type=float, default=60.0, help='seconds from save to save')
  parser.add_argument('--folder', help='on the disk to write to')
  given = parser.parse_args()
  config = victim.config_of().unlock()
  config.model.update(dict(width=given.width, depth=given.depth, heads=given.heads))
  config.ema.update(dict(stds=(), snapshot_examples=0))
  config.train.batch = given.batch
  recipe, mesh = recipes.recipe(config), sharding.device_mesh()
  state = train_state.create(recipe.model.init, recipe.optimizer, recipe.averages.names, 0, mesh)
  step = train_step.make_step(train_step.gradient_of(recipe.objective.loss), recipe.optimizer,
                              recipe.averages.rates, mesh)
  source = dataset.open_source(config)
  with contextlib.closing(pipeline.batches(source, seed=0, batch=given.batch)) as batches:
    batch = sharding.place_batch(next(batches), mesh)
  state, health = step(state, batch)
  jax.block_until_ready(health)

  with tempfile.TemporaryDirectory(dir=given.folder) as name:
    folder, longest, saves = pathlib.Path(name), 0.0, 0
    with ledger.booked(folder) as book, checkpoint.open_checkpoints(folder, keep=2) as checkpoints:
      book.switch('step')
      began = last = time.monotonic()
      while time.monotonic() - began < 60 * given.minutes:
        state, fresh = step(state, batch)
        jax.block_until_ready(health)
        health = fresh
        if time.monotonic() - last >= given.interval:
          jax.block_until_ready(fresh)   # As in training, which checks what it saves.
          last = time.monotonic()
          with book.on('save'):
            checkpoints.save(state)
          longest, saves = max(longest, time.monotonic() - last), saves + 1
      # Waiting for the last save is part of the end of a run, and is not counted.
      book.close()
    found = ledger.totals(folder / 'ledger.jsonl')
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  total = sum(found.values())
  print(f'{size / 1e6:,.0f} MB, {saves} saves, one each {given.interval:g} s, {int(state.step):,} '
        f'steps: {found["save"]:.2f} s of {total:.1f} s, {found["save"] / total:.2%} of it; the '
        f'longest {longest:.2f} s')


if __name__ == '__main__':
  main()
