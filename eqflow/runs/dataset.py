"""A run's data: opened and checked against the config, before anything compiles."""

from ml_collections import ConfigDict
import numpy as np

from eqflow import files
from eqflow.config import consistency
from eqflow.config.errors import ABSENT, ConfigError
from eqflow.data import pairs, pipeline, sources
from eqflow.runs.run import Run


def open_source(config: ConfigDict, *, split: str | None = None) -> sources.Source:
  """The data set of config.data. Raises ValueError if it cannot be opened or has another shape."""
  section = config.data
  shape, split = tuple(section.shape), split or section.split
  size, channels = (shape[0], shape[2]) if len(shape) == 3 else (None, 3)
  try:
    source = sources.load(
        section.name, split=split, size=size, channels=channels,
        data_dir=files.resolved(section.dir) if section.dir else None)
  except (ValueError, OSError, NotImplementedError) as error:
    raise ConfigError('data', ABSENT, f'name={section.name!r}, dir={section.dir!r}, split={split!r} '
                      f'cannot be opened: {error}') from error
  consistency.check_source(config, source)
  return source


def training_records(config: ConfigDict) -> np.ndarray:
  """The training records [n, ...]; with config.data.flip, followed by their mirror images."""
  x = pipeline.arrays(open_source(config))[0]
  return np.concatenate([x, x[:, :, ::-1]]) if config.data.flip else x


def evaluation_source(run: Run) -> sources.Source:
  """The records that samples are compared with: config.evaluate.split of config.data.

  For pairs: the data behind them, see `behind_pairs`. Raises ValueError for a batch that does not
  divide by the devices, an unknown split, or too few records.
  """
  source = open_source(behind_pairs(run.config), split=run.config.evaluate.split)
  consistency.check_evaluation(run.config, source, run.mesh)
  return source


def behind_pairs(config: ConfigDict) -> ConfigDict:
  """The config with data that are not pairs: pairs are replaced by the data of the model behind them.

  That model may have been trained on pairs too, so this is repeated.
  """
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
