"""python -m experiments.speed.peers: sampling speed compared with diffusers and torch.

50 steps of DDIM, DPM-Solver++ and Heun with the same weights on both sides: one compiled scan here,
the loop over the scheduler under torch.inference_mode there. Before anything is timed, networks and
samples are checked to agree. Samples of one image are timed ten in a row: the question is
samples/s, not how fast an idle processor wakes up. Both sides run in turn in one process, and the
median ratio of the pairs counts. Rows in results/peers.json are kept, so an interrupted run continues;
--again measures all rows again. The last section of README.md is written from the rows.
"""

import argparse
import json
import pathlib
import platform

import diffusers
import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np
import torch

from eqflow import fields, grids, outputs, processes, samplers
from eqflow.models import dit
from experiments.speed import torch_dit
from experiments.speed.pairs import pairs

HERE = pathlib.Path(__file__).parent
STEPS, SIDE, CHANNELS, CLASSES = 50, 8, 4, 10
TABLE = dict(beta_schedule='scaled_linear', beta_start=0.00085, beta_end=0.012,
             timestep_spacing='trailing', prediction_type='v_prediction')
# (width, depth, batch): (pairs, samples in a row, target ratio)
SIZES = {(64, 2, 1): (31, 10, 8.0), (64, 2, 16): (31, 1, 2.0), (256, 6, 32): (9, 1, 2.0)}

SOLVERS = {
    'DDIM': (
        lambda process: samplers.ddim(process, outputs.v),
        lambda: diffusers.DDIMScheduler(clip_sample=False, **TABLE)),
    'DPM-Solver++ 2M': (
        lambda process: samplers.dpmpp_2m(process, outputs.v),
        lambda: diffusers.DPMSolverMultistepScheduler(**TABLE)),
    # Both integrate over sigma/alpha.
    'Heun': (
        lambda process: samplers.heun(process, outputs.v, along=outputs.eps),
        lambda: diffusers.HeunDiscreteScheduler(**TABLE)),
}


def networks(width, depth):
  """The network (z, t, condition) -> y here and in torch, with the same random weights."""
  module = dit.DiT(patch=2, width=width, depth=depth, heads=4, num_classes=CLASSES)
  z, c_noise = jnp.zeros((1, SIDE, SIDE, CHANNELS)), jnp.zeros(1)
  params = module.init(jax.random.key(0), z, c_noise, jnp.zeros(1, jnp.int32))['params']
  # Layers that start at zero would hide the layers that they multiply.
  keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(params)))
  keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
  stirred = jax.tree.map(lambda a, key: a + 0.02 * jax.random.normal(key, a.shape), params, keys)
  params = dict(stirred, fixed_positions=params['fixed_positions'])
  theirs = torch_dit.from_flax(params, module, (SIDE // 2) ** 2, CHANNELS)
  return Partial(module.apply, {'params': params}), theirs


def runs(ours, theirs, solver, batch):
  """Two functions without arguments: sampling here, and sampling by diffusers' loop."""
  make, make_scheduler = SOLVERS[solver]
  scheduler = make_scheduler()
  table = scheduler.alphas_cumprod.numpy()
  process = Partial(processes.discrete, angles=processes.table_angles(table))
  noise = np.random.RandomState(0).standard_normal((batch, SIDE, SIDE, CHANNELS)).astype(np.float32)
  condition = np.arange(batch) % CLASSES
  predict = fields.bind(fields.conditioned(ours, process, scale_input=fields.unit,
                                           c_noise=fields.table_index), jnp.asarray(condition))
  made, grid, z = make(process), grids.trailing(STEPS), jnp.asarray(noise)
  z_torch = torch.from_numpy(noise).permute(0, 3, 1, 2).contiguous()
  condition = torch.from_numpy(condition)

  def here():
    return samplers.sample(made, predict, z, grid).block_until_ready()

  @torch.inference_mode()
  def there():
    scheduler.set_timesteps(STEPS)
    z = z_torch
    if solver == 'Heun':
      # Its state is z/alpha.
      z = z * (scheduler.init_noise_sigma**2 + 1) ** 0.5
    for t in scheduler.timesteps:
      y = theirs(scheduler.scale_model_input(z, t), t.expand(batch), condition)
      z = scheduler.step(y, t, z, return_dict=False)[0]
    return z

  with torch.inference_mode():
    y = theirs(z_torch, torch.full((batch,), 500.0), condition)
  # Entry 500 of the table of 1,000.
  _agree('networks', jax.jit(predict)(z, jnp.full(batch, 0.501)), y, 1e-5)
  _agree('samples', here(), there(), 1e-4)
  return here, there


def _agree(what, here, there, bound):
  there = there.permute(0, 2, 3, 1).numpy()
  error = float(abs(np.asarray(here) - there).max() / abs(there).max())
  if not error < bound:
    raise AssertionError(f'the two {what} differ by {error:.1e} of the largest entry')


def measure(width, depth, batch, solver, count, in_a_row):
  """One row: seconds on both sides, and their ratio with its range."""
  here, there = runs(*networks(width, depth), solver, batch)
  row = lambda f: lambda: [f() for _ in range(in_a_row)]
  # torch's threads busy-wait for a while.
  ours, theirs = (s / in_a_row for s in pairs(row(here), row(there), count, pause=0.02))
  ratios = theirs / ours
  return dict(width=width, depth=depth, batch=batch, solver=solver, pairs=count,
              ours=float(np.median(ours)), theirs=float(np.median(theirs)),
              ratio=float(np.median(ratios)), low=float(np.quantile(ratios, 0.1)),
              high=float(np.quantile(ratios, 0.9)))


def table(rows):
  """The rows in Markdown."""
  yield ('| network, 8x8x4 | batch | solver, 50 steps | eqflow | diffusers and torch | speed-up '
         '(10 to 90 % of pairs) | target |')
  yield '|---|---|---|---|---|---|---|'
  for row in rows:
    *_, target = SIZES[row['width'], row['depth'], row['batch']]
    yield (f'| width {row["width"]}, depth {row["depth"]} | {row["batch"]} | {row["solver"]} '
           f'| {1000 * row["ours"]:.1f} ms | {1000 * row["theirs"]:.1f} ms | {row["ratio"]:.1f} '
           f'({row["low"]:.1f} to {row["high"]:.1f}) | {target:.0f} |')


HEADING = '## Sampling speed, compared with diffusers and torch'


READING = '''\
At batch 1, solvers with more small operations lose time to the order in which XLA's CPU backend runs
them. In two quick measurements (`--pairs 9`) with
`XLA_FLAGS=--xla_cpu_enable_concurrency_optimized_scheduler=false`, a sample took 3.1 to 3.5 ms with
DDIM, 3.5 to 3.7 ms with DPM-Solver++ and 6.2 to 6.5 ms with Heun, 7.6 to 9.5 times as fast as torch.
At width 256 most of the time is spent in matrix products, 240 GFLOP a sample. XLA's ran at 180 to 260
GFLOP/s here, torch's at 310; twice torch's speed would need 330, about the peak of two cores.'''


def write(rows, machine):
  """The section of README.md."""
  readme = HERE / 'README.md'
  kept = readme.read_text().split(HEADING)[0].rstrip()
  readme.write_text('\n'.join([
      kept, '', HEADING, '',
      f'`python -m experiments.speed.peers`, {machine}. The same weights, labels and noise on both '
      'sides, samples equal to 1e-4; torch eager under `inference_mode` with its default threads; '
      'both sides run alternately in one process.', '', *table(rows), '', READING, '']))


def main():
  flags = argparse.ArgumentParser()
  flags.add_argument('--again', action='store_true', help='measure stored rows again')
  flags.add_argument('--pairs', type=int, help='number of pairs for a quick measurement, not stored')
  arguments = flags.parse_args()
  path = HERE / 'results/peers.json'
  rows = json.loads(path.read_text()) if path.exists() and not arguments.again else []
  measured = {(row['width'], row['depth'], row['batch'], row['solver']) for row in rows}
  for (width, depth, batch), (count, in_a_row, _) in SIZES.items():
    for solver in SOLVERS:
      if (width, depth, batch, solver) in measured and not arguments.pairs:
        continue
      row = measure(width, depth, batch, solver, arguments.pairs or count, in_a_row)
      print(*list(table([row]))[2:], flush=True)
      if not arguments.pairs:
        rows.append(row)
        path.write_text(json.dumps(rows, indent=1) + '\n')
  if not arguments.pairs:
    threads = torch.get_num_threads()
    write(rows, f'{platform.machine()} with {threads} threads, jax {jax.__version__}, torch '
          f'{torch.__version__}, diffusers {diffusers.__version__}')
    print(*table(rows), sep='\n')


if __name__ == '__main__':
  main()
