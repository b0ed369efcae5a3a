"""Another run beside the one that is sampled: its config, and whether its fields may be added."""

import json
import pathlib

from ml_collections import ConfigDict

from eqflow.config import recipes

# What runs did before their configs had the key.
SINCE = {'loss.coupling.name': 'independent', 'loss.at_data': 0.0, 'loss.dispersive': 0.0,
         'energy.name': 'none', 'model.final_scale': 0.0, 'loss.uncertainty': 0, 'ema.stds': [],
         'ema.snapshot_examples': 0, 'ema.snapshot_dtype': 'float32', 'train.max_skipped': 0,
         'model.remat_policy': 'nothing', 'mesh.data': -1, 'mesh.fsdp': 1, 'mesh.tensor': 1,
         'train.stuck_seconds': 0.0}


def config_of(folder: pathlib.Path, flag: str) -> ConfigDict:
  """The config of the run in a folder; raises ValueError, beginning with `flag`, where it has none."""
  try:
    config = _tuples(json.loads((folder / 'config.json').read_text()))
  except (OSError, ValueError) as error:
    raise ValueError(f'{flag}: there is no run ({error}): give the --workdir of one') from error
  # What a run did before its config had the key, as in `run.check_config`.
  try:
    for key, value in SINCE.items():
      *sections, last = key.split('.')
      if sections == ['model']:
        continue   # Not every network has the number; those that do start from this one.
      section = config
      for name in sections:
        section = section.setdefault(name, {})
      section.setdefault(last, value)
    return ConfigDict(config)
  except (AttributeError, TypeError) as error:
    raise _unreadable(flag, error) from error


def _tuples(value):
  """What JSON has made lists of, as configs write it."""
  if isinstance(value, dict):
    return {key: _tuples(each) for key, each in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def recipe_of(other: ConfigDict, flag: str, config: ConfigDict,
              recipe: recipes.Recipe) -> recipes.Recipe:
  """The recipe of another run's config, whose fields may be added to those of config's `recipe`.

  Raises ValueError, beginning with `flag`, where they are of other data or vectors of another kind.
  """
  try:
    _check_alike(config, other, timed=recipe.sampling.grid is not None)
    return recipes.recipe(other)
  except (AttributeError, KeyError, TypeError) as error:
    raise _unreadable(flag, error) from error
  except ValueError as error:
    raise ValueError(f'{flag}: {error}') from error


def _unreadable(flag, error):
  return ValueError(f'{flag}: its config.json is not as this version writes one ({error}): '
                    'write into it what is missing, or give the --workdir of a newer run')


def _check_alike(config, other, timed):
  if tuple(config.data.shape) != tuple(other.data.shape):
    raise ValueError(f'its data have the shape {tuple(other.data.shape)}, those of '
                     f'--workdir {tuple(config.data.shape)}: fields are added in one space')
  # Solvers along times read a field by the numbers of its output, as its decay; a descent by none.
  for key in ('process', 'model.label_noise', 'output' if timed else 'output.name'):
    ours, theirs = (json.dumps(_at(each, key), sort_keys=True) for each in (config, other))
    if ours != theirs:
      raise ValueError(f'its config.{key} is {theirs}, that of --workdir {ours}: only '
                       'vectors of one kind are added')


def _at(config, key):
  for part in key.split('.'):
    config = config[part]
  return config.to_dict() if isinstance(config, ConfigDict) else config
