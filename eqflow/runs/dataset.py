"""A run's data: opened and checked against the config, before anything compiles."""

import pathlib

from ml_collections import ConfigDict

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
    raise ValueError(f'config.data (name {section.name!r}, dir {section.dir!r}, split {split!r}): '
                     f'{error}') from error
  if tuple(source.shape) != shape:
    raise ValueError(f'config.data.shape={shape}, but {source.name} has records of '
                     f'{tuple(source.shape)}: set config.data.shape to that')
  if section.num_classes not in (0, source.num_classes):
    raise ValueError(f'config.data.num_classes={section.num_classes}, but {source.name} has '
                     f'{source.num_classes}: set it to that, or to 0 to train without labels')
  return source


def evaluation_source(config: ConfigDict) -> sources.Source:
  """The records that samples are compared with: config.evaluate.split of config.data.

  For pairs, of the data that the first of the models behind them was trained on. Raises ValueError
  for what would fail only after training: batch, split, too few records.
  """
  sharding.check_rows(config.sample.batch, mesh_of(config))
  source = open_source(behind_pairs(config), split=config.evaluate.split)
  if len(source) < 8:
    raise ValueError(f'config.evaluate.split={config.evaluate.split!r} has {len(source)} records: '
                     'halves of at least 4 are compared by their third neighbours, so give 8 or more')
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
    raise ValueError(f'config.data.dir={config.data.dir!r}: {error}') from error
