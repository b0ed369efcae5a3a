"""What a command receives: a config, its folder, what it means, and its devices.

A folder is what it resolves to: workdir, data.dir and sample.guide.workdir are absolute from here on,
and are stored so. The same folder in another spelling, or from another working directory, is the same.
"""

import pathlib
from typing import Any, NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from eqflow import files
from eqflow.config import consistency, recipes
from eqflow.config.errors import naming
from eqflow.training import sharding


class Run(NamedTuple):
  """A config and all that is derived from it once."""
  config: ConfigDict
  workdir: pathlib.Path
  recipe: recipes.Recipe
  mesh: Mesh


def run_of(config: ConfigDict, workdir: pathlib.Path) -> Run:
  """The run of a config in `workdir`, on all devices. Raises ValueError if the config cannot run."""
  recipe, config = recipes.recipe(config), config.copy_and_resolve_references()
  guide = config.sample.guide
  for name, section, key in (('data', config.data, 'dir'), ('sample.guide', guide, 'workdir')):
    if section[key]:
      with naming(f'{name}.{key}', section[key]):
        section[key] = str(files.resolved(section[key]))
  return Run(config, files.resolved(workdir), recipe, mesh_of(config))


def mesh_of(config: ConfigDict, devices: Any = None) -> Mesh:
  """The mesh of config.mesh over `devices`, by default all. Raises ConfigError if they do not fit."""
  with naming('mesh'):
    mesh = sharding.device_mesh(devices, **config.mesh)
  consistency.check_devices(config, mesh)
  return mesh
