"""A second run: its field is added to the field of the first run, or guides it."""

import json
import pathlib

from ml_collections import ConfigDict

from eqflow.config import recipes, schema
from eqflow.runs.run import Run


def config_of(folder: pathlib.Path) -> ConfigDict:
  """The config of the run in a folder. Raises ValueError if it is missing or cannot run."""
  try:
    config = ConfigDict(_tuples(json.loads((folder / 'config.json').read_text())))
  except (OSError, ValueError, TypeError) as error:
    raise ValueError(f'{folder} contains no run ({error}); give the --workdir of one') from error
  schema.check(config)
  return config


def _tuples(value):
  """JSON's lists as tuples, as configs have them."""
  if isinstance(value, dict):
    return {key: _tuples(each) for key, each in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def run_like(run: Run, other: ConfigDict, folder: pathlib.Path) -> Run:
  """The run of config `other` in `folder`, on the devices of `run`.

  Raises ValueError if their fields cannot be added: their outputs, processes or data differ.
  """
  # A solver along times uses the numbers of the output, such as its decay; a descent does not.
  output = 'output' if run.recipe.sampling.grid is not None else 'output.name'
  for key in ('data.shape', 'process', 'model.c_noise', output):
    ours, theirs = (json.dumps(_at(each, key), sort_keys=True) for each in (run.config, other))
    if ours != theirs:
      raise ValueError(f'its config.{key}={theirs} differs from {ours} of --workdir; use a run with '
                       f'{ours}')
  return Run(other, folder, recipes.recipe(other), run.mesh)


def _at(config, key):
  for part in key.split('.'):
    config = config[part]
  return config.to_dict() if isinstance(config, ConfigDict) else config
