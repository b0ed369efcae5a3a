"""A second run: its field is added to the field of the first run, or guides it."""

import json
import pathlib

from ml_collections import ConfigDict

from eqflow.config import reading, recipes, schema
from eqflow.config.errors import ConfigError
from eqflow.runs.run import Run


def config_of(folder: pathlib.Path) -> ConfigDict:
  """The config of the run in a folder. Raises ValueError if it is missing or cannot run."""
  try:
    config = reading.stored(folder / 'config.json')
  except ValueError as error:
    raise ValueError(f'{folder} contains no run ({error}); give the --workdir of one') from error
  schema.check(config)
  return config


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


def guide_of(run: Run) -> Run | None:
  """The run in config.sample.guide.workdir, or None if that is empty. Reads no checkpoint.

  Raises ConfigError if the folder contains no run, or a run that cannot guide this one.
  """
  guide, classes = run.config.sample.guide, run.config.data.num_classes
  if not guide.workdir:
    return None
  folder = pathlib.Path(guide.workdir)   # absolute, see runs/run.py
  try:
    other = config_of(folder)
    # The guide itself is not guided.
    other.sample = ConfigDict(other.sample.to_dict() | dict(
        guide=dict(workdir='', params=''), params=guide.params, scale=1.0))
    found = run_like(run, other, folder)
    if other.data.num_classes not in (0, classes):
      raise ValueError(f'it has {other.data.num_classes} classes, but --workdir has {classes}; use a '
                       f'run with {classes} classes, or without classes')
  except ValueError as error:
    if isinstance(error, ConfigError) and error.key == 'sample.params':
      raise ConfigError(
          'sample.guide.params', guide.params, error.allowed, error.remedy) from error
    raise ConfigError(
        'sample.guide.workdir', guide.workdir, f'cannot guide this run: {error}') from error
  return found


def _at(config, key):
  for part in key.split('.'):
    config = config[part]
  return config.to_dict() if isinstance(config, ConfigDict) else config
