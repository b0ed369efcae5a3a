"""What a run needs of memory and disk at least, by arithmetic: what cannot fit is rejected at once."""

import math
import pathlib
import shutil

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from eqflow.config.errors import ABSENT, ConfigError
from eqflow.planning import costs, machine
from eqflow.runs.run import Run
from eqflow.training import sharding
from eqflow.training.train_state import TrainState


def check_state(state: TrainState, mesh: Mesh) -> None:
  """Raises ConfigError if the state of a training does not fit on each device of the mesh."""
  sizes, limit = costs.state_bytes(state), machine.device_memory(mesh)
  if sum(sizes.values()) > limit:
    parts = ', '.join(f'{size / 1e9:,.1f} GB of {name}' for name, size in sizes.items() if size > 1e6)
    raise ConfigError('model', ABSENT, f'needs {parts} on each device, which has {limit / 1e9:,.1f} GB',
                      'use a smaller model, fewer EMAs, or more devices along config.mesh.fsdp')


def check_training(run: Run) -> None:
  """Raises ConfigError if a batch of training, or of previews and evaluation, does not fit."""
  config = run.config
  # Data and noise.
  rows = 2 * config.train.batch // sharding.parts(run.mesh)
  _check('train.batch', config.train.batch, rows, config, machine.device_memory(run.mesh))
  check_samples(run, config.evaluate.num_samples, 'evaluate.num_samples')


def check_samples(run: Run, count: int, key: str) -> None:
  """Raises ConfigError if `count` samples do not fit on the host, or a batch of them on a device.

  key is the name of the count, and may be a flag such as '--num_samples'.
  """
  config, batch = run.config, min(count, run.config.sample.batch)
  # The samples, and a copy in their file.
  _check(key, count, 2 * count, config, machine.host_memory())
  _check('sample.batch', config.sample.batch, 2 * batch // sharding.parts(run.mesh), config,
         machine.device_memory(run.mesh))


def check_disk(folder: pathlib.Path, needed: int, what: str) -> None:
  """Raises ValueError if the disk of `folder` has less than `needed` bytes free."""
  free = shutil.disk_usage(folder).free
  if needed > free:
    raise ValueError(f'{what} need {needed / 1e9:,.2f} GB, but the disk of {folder} has '
                     f'{free / 1e9:,.2f} GB free; free space, or give another folder')


def check_saves(config: ConfigDict, workdir: pathlib.Path, state: TrainState, saved: int) -> None:
  """Raises ValueError if the checkpoints and snapshots that are to come do not fit on the disk.

  `saved` is the number of checkpoints that exist.
  """
  size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
  section, every = config.train, config.ema.snapshot_examples
  left = section.num_examples // every * (not saved) if every else 0
  # The next one is written before the oldest is deleted.
  most = min(section.keep_checkpoints, section.num_examples // section.checkpoint_examples + 1) + 1
  needed = size(state) * max(1, most - saved)
  check_disk(workdir, needed + left * len(config.ema.stds) * size(state.params),
             'checkpoints and snapshots')


def _check(key, given, rows, config: ConfigDict, limit: int) -> None:
  # A record, its key, label and norm.
  size = rows * (4 * math.prod(config.data.shape) + 32)
  if size <= limit:
    return
  allowed = f'needs at least {size / 1e9:,.3g} GB of memory, but {limit / 1e9:,.3g} GB exist'
  most = max(1, given * limit // (2 * size))
  if key.startswith('--'):
    raise ValueError(f'{key}={given} {allowed}; use {most} or fewer')
  raise ConfigError(key, given, allowed, f'use {most} or fewer')
