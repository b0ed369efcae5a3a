"""python -m experiments.checkpoints: the memory needed to read and write XL/2's 675 M parameters.

The weights are random, 2.7 GB in float32, in a temporary folder (8.1 GB with the torch checkpoint,
which needs torch). Each row is measured in its own process: the peak of resident memory (VmHWM of
Linux, reset before), minus the memory after imports, over the size of the weights. Pages of a mapped
file count once they are read, although the system may reclaim them. Of the memory that is kept at the
end, only the private part is printed.
"""

import argparse
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import jax
from jax import numpy as jnp
import numpy as np

from eqflow import interop
from eqflow.interop import convert
from eqflow.models import dit

NEEDED = 9e9
# A published XL/2 for 32x32x4 latents of 256x256 images.
SHAPE = dict(input_size=32, num_heads=16)


def status(name):
  """A value of /proc/self/status, in bytes."""
  lines = pathlib.Path('/proc/self/status').read_text().splitlines()
  return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def write(folder):
  network = dit.DiT(patch=2, **dit.SIZES['XL'], num_classes=1000, doubled=True)
  inputs = jnp.zeros((1, 32, 32, 4)), jnp.zeros(1), jnp.zeros(1, int)
  shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)['params']
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda a: rng.standard_normal(a.shape, np.float32), shapes)
  interop.export(params, folder / 'xl.safetensors', channels=4)


def write_torch(folder):
  """A checkpoint as EqM's training code writes it, without the optimizer's state."""
  from safetensors.torch import load_file
  import torch
  ema = load_file(folder / 'xl.safetensors')
  model = {key: a + 1 for key, a in ema.items()}
  torch.save(dict(model=model, ema=ema, args=argparse.Namespace(lr=1e-4)), folder / 'xl.pt')


def load(folder):
  _, params = interop.load(folder / 'xl.safetensors', **SHAPE)
  return jax.block_until_ready(params)


def export(folder):
  interop.export(load(folder), folder / 'out.safetensors', channels=4)


def from_torch(folder):
  convert.convert(folder / 'xl.pt', folder / 'out.safetensors')


ROWS = {load: 'safetensors to params', export: 'safetensors to params to safetensors',
        from_torch: '.pt with model and EMA to safetensors'}


def measured(task, folder):
  """Measures a task in this process and prints its row of the table."""
  jnp.zeros(1).block_until_ready()
  if task is from_torch:
    import safetensors.torch  # noqa: F401, imported before the measurement
  size = (folder / 'xl.safetensors').stat().st_size
  before, private = status('VmRSS'), status('RssAnon')
  pathlib.Path('/proc/self/clear_refs').write_text('5')
  start = time.perf_counter()
  kept = task(folder)
  seconds = time.perf_counter() - start
  peak, private = status('VmHWM') - before, status('RssAnon') - private
  del kept
  print(f'| {ROWS[task]} | {size / 1e9:.2f} GB | {peak / 1e9:.2f} GB | {peak / size:.2f} | '
        f'{private / size:.2f} | {seconds:.0f} s |', flush=True)


def main():
  flags = argparse.ArgumentParser()
  flags.add_argument('task', nargs='?')
  flags.add_argument('folder', nargs='?', type=pathlib.Path)
  flags = flags.parse_args()
  if flags.task:
    task = globals()[flags.task]
    return measured(task, flags.folder) if task in ROWS else task(flags.folder)
  with tempfile.TemporaryDirectory() as folder:
    if shutil.disk_usage(folder).free < NEEDED:
      sys.exit(f'{folder} has less than {NEEDED / 1e9:.0f} GB free: set TMPDIR')
    child = lambda task: subprocess.run(
        [sys.executable, '-m', 'experiments.checkpoints', task.__name__, folder], check=True,
        env=dict(os.environ, JAX_PLATFORMS='cpu'))
    print('| task | weights | peak memory | peak / weights | private memory kept / weights | time |\n'
          '|---|---|---|---|---|---|', flush=True)
    child(write)
    child(load)
    child(export)
    pathlib.Path(folder, 'out.safetensors').unlink()
    if importlib.util.find_spec('torch'):
      child(write_torch)
      child(from_torch)


if __name__ == '__main__':
  main()
