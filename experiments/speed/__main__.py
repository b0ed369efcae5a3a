"""Overhead of the training loop, of sampling and of the import; the time of make demo and make test.

Both sides of a ratio run alternately in one process, so that a drift of the machine's speed affects
both. The median of the pairs is printed with its range.

  python -m experiments.speed              the ratios and the import
  python -m experiments.speed --whole      also times make demo and make test, several minutes
"""

import argparse
import contextlib
import functools
import pathlib
import shutil
import subprocess
import sys
import tempfile

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np

from configs import digits
from eqflow import grids, outputs, processes, samplers
from eqflow.commands import train
from eqflow.config import networks, recipes
from eqflow.data import pipeline
from eqflow.runs import blueprint, dataset
from eqflow.runs.run import Run
from eqflow.training import checkpoint, sharding
from eqflow.training.runtime import ledger, preemption
from experiments import ROOT
from experiments.speed.pairs import clock, pairs


def loop_against_step(count=7, num_steps=300):
  """The training loop, with data, log and averages, against the compiled step on one batch."""
  config = digits.get_config()
  config.train.update(dict(sample_examples=10**9, checkpoint_examples=10**9))
  config.lock()
  recipe, mesh = recipes.recipe(config), sharding.device_mesh()
  source, b = dataset.open_source(config), config.train.batch
  step = blueprint.compiled(config, recipe, mesh)
  fresh = lambda: blueprint.first_state(config, recipe, mesh)
  with contextlib.closing(pipeline.batches(source, seed=0, batch=b)) as batches:
    batch = sharding.place_batch(next(batches), mesh)

  def bare():
    state = fresh()
    for _ in range(num_steps):
      state, health = step(state, batch)
    jax.block_until_ready(health)

  def loop():
    with tempfile.TemporaryDirectory() as folder:
      folder, book = pathlib.Path(folder), ledger.Ledger()
      with checkpoint.open_checkpoints(folder, keep=1) as checkpoints:
        train.trained(Run(config, folder, recipe, mesh), source, fresh(), step, num_steps, checkpoints,
                      preemption.Stop(), book)

  bare_seconds, loop_seconds = pairs(bare, loop, count)
  ratios = bare_seconds / loop_seconds
  return f'{np.median(ratios):.1%} ({ratios.min():.1%} to {ratios.max():.1%})'


def sample_against_calls(num_steps=50, batch=16, count=15):
  """sample with N steps against N calls of the jitted network, width 64, depth 3, 8x8x1."""
  config = digits.get_config('flow')
  module = networks.flax_module(config.model, 10)
  z = jax.random.normal(jax.random.key(0), (batch, 8, 8, 1))
  label = jnp.zeros(batch, jnp.int32)
  params = module.init(jax.random.key(1), z, jnp.zeros(batch), label)
  predict = Partial(lambda params, label, z, t: module.apply(params, z, t, label), params, label)
  solver = samplers.ddim(processes.linear, outputs.u)
  grid = grids.uniform(num_steps)
  network = jax.jit(predict)
  ts = [jnp.full(batch, t, jnp.float32) for t in grid[:-1]]

  def whole():
    samplers.sample(solver, predict, z, grid).block_until_ready()

  def calls():
    # Each call depends on the last one, as the steps of a sampler do.
    y = z
    for t in ts:
      y = network(y, t)
    y.block_until_ready()

  whole_seconds, calls_seconds = pairs(whole, calls, count)
  ratios = whole_seconds / calls_seconds
  return f'{np.median(ratios):.3f} ({ratios.min():.3f} to {ratios.max():.3f})'


def import_seconds(count=7):
  code = ('import jax, time; start = time.perf_counter(); import eqflow.samplers; '
          'print(time.perf_counter() - start)')
  found = [float(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                                check=True, cwd=ROOT).stdout) for _ in range(count)]
  return f'{np.median(found):.3f} s ({min(found):.3f} to {max(found):.3f})'


def make(target):
  shutil.rmtree(ROOT / 'runs/digits', ignore_errors=True)
  return f'{clock(lambda: subprocess.run(["make", target], cwd=ROOT, check=True)):.0f} s'


def main():
  flags = argparse.ArgumentParser()
  flags.add_argument('--whole', action='store_true')
  whole = flags.parse_args().whole
  device = jax.devices()[0]
  print(f'on {jax.device_count()} {device.device_kind} device(s), jax {jax.__version__}\n')
  rows = [
      ('training loop / bare step, examples/s', loop_against_step, '>= 95 %'),
      *((f'sample of 50 steps / 50 calls of the network, batch {batch}',
         functools.partial(sample_against_calls, batch=batch, count=count), '<= 1.05')
        for batch, count in ((1, 101), (16, 31), (64, 9), (256, 5))),
      ('import eqflow.samplers after jax', import_seconds, '<= 0.3 s'),
  ]
  if whole:
    rows += [('make demo, installed', lambda: make('demo'), '<= 240 s'),
             ('make test, installed', lambda: make('test'), '<= 360 s')]
  print('| quantity | measured | target |\n|---|---|---|')
  for name, measure, target in rows:
    print(f'| {name} | {measure()} | {target} |', flush=True)


if __name__ == '__main__':
  main()
