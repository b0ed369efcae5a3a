"""A run's data: opened and checked against the config, before anything compiles."""

import pathlib

from ml_collections import ConfigDict

from eqflow.config.errors import ABSENT, ConfigError
from eqflow.data import pairs, sources
from eqflow.runs.run import mesh_of
from eqflow.training import sharding


def open_source(config: ConfigDict, *, split: str | None = None) -> sources.Source:
  """The data set of config.data. Raises ValueError where it cannot be had or is not as described."""
  section = config.data
  shape, split = tuple(section.shape), split or section.split
  size, channels = (shape[0], shape[2]) if len(shape) == 3 else (None, 3)
  try:
    source = sources.load(
        section.name, split=split, size=size, channels=channels,
        data_dir=pathlib.Path(section.dir).expanduser() if section.dir else None)
  except (ValueError, OSError) as error:
    raise ConfigError('data', ABSENT, f'name={section.name!r}, dir={section.dir!r}, split={split!r} '
                      f'cannot '
                      f'be opened: {error}') from error
  if tuple(source.shape) != shape:
    raise ConfigError('data.shape', shape, f'must be {tuple(source.shape)}, the shape of the records '
                      f'of '
                      f'{source.name}')
  if section.num_classes not in (0, source.num_classes):
    raise ConfigError('data.num_classes', section.num_classes, f'must be {source.num_classes}, the '
                      f'classes '
                      f'of {source.name}, or 0 to train without labels')
  return source


def evaluation_source(config: ConfigDict) -> sources.Source:
  """The records that samples are compared with: config.evaluate.split of config.data.

  For pairs, of the data that the first of the models behind them was trained on. Raises ValueError
  for what would fail only after training: batch, split, too few records.
  """
  sharding.check_rows(config.sample.batch, mesh_of(config))
  source = open_source(behind_pairs(config), split=config.evaluate.split)
  if len(source) < 8:
    raise ConfigError('evaluate.split', config.evaluate.split, f'has {len(source)} records: evaluation '
                      'needs 8 or more')
  return source


def behind_pairs(config: ConfigDict) -> ConfigDict:
  """The config, its data those of the model that drew its pairs, and so on while these are pairs."""
  while config.data.name == 'pairs':
    config = config.copy_and_resolve_references()
    with config.unlocked():
      config.data = ConfigDict(_record(config)['config']['data'])
  return config


def _record(config):
  try:
    return pairs.record(config.data.dir or None)
  except OSError as error:
    raise ConfigError('data.dir', config.data.dir, f'has no pairs: {error}') from error
