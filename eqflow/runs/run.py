"""What a command is given: the devices of a run."""

from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from eqflow.config.errors import naming
from eqflow.training import sharding


def mesh_of(config: ConfigDict, devices: Any = None) -> Mesh:
  """The mesh of config.mesh over `devices`, or all. Raises ValueError where they are not so many."""
  with naming('mesh'):
    return sharding.device_mesh(devices, **config.mesh)
