"""A second run, whose field is added to the first run's or guides it: its config, and its fit."""

import json
import pathlib

from ml_collections import ConfigDict

from eqflow.config import recipes, schema


def config_of(folder: pathlib.Path) -> ConfigDict:
  """The config of the run in a folder. Raises ValueError if there is none, or it cannot run."""
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


def recipe_of(other: ConfigDict, config: ConfigDict, recipe: recipes.Recipe) -> recipes.Recipe:
  """The recipe of another run, whose field may be added to that of `config` and its `recipe`.

  Raises ValueError where the two predict different vectors, or of different data.
  """
  # A solver along times uses the numbers of the output, such as its decay; a descent does not.
  output = 'output' if recipe.sampling.grid is not None else 'output.name'
  for key in ('data.shape', 'process', 'model.label_noise', output):
    ours, theirs = (json.dumps(_at(each, key), sort_keys=True) for each in (config, other))
    if ours != theirs:
      raise ValueError(f'its config.{key} is {theirs}, but that of --workdir is {ours}: only fields of '
                       'the same kind are added')
  return recipes.recipe(other)


def _at(config, key):
  for part in key.split('.'):
    config = config[part]
  return config.to_dict() if isinstance(config, ConfigDict) else config
