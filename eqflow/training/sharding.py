"""Where arrays live: one mesh over all devices, the batch split along it, the state on each."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np


def device_mesh(devices: Any = None) -> Mesh:
  """A mesh with the one axis `data`, over `devices` or all there are."""
  devices = jax.devices() if devices is None else devices
  return Mesh(np.asarray(devices), ('data',), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
  """Each device holds its share of the leading axis."""
  return NamedSharding(mesh, PartitionSpec('data'))


def place_batch(batch: Any, mesh: Mesh) -> Any:
  """This process's rows [b/processes, ...] as its part of global arrays [b, ...] over the mesh."""
  sharding = by_example(mesh)
  return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, a), batch)


def check_divides(batch: int, accumulate: int, mesh: Mesh) -> None:
  """Raises ValueError unless each device gets the same number of rows of each microbatch."""
  share = accumulate * mesh.size
  if batch < 1 or accumulate < 1 or batch % share:
    raise ValueError(
        f'config.train.batch={batch} does not divide by {mesh.size} device(s) x '
        f'config.train.accumulate={accumulate}: choose a multiple of {max(share, 1)}')
