"""A run's data: opened and checked against the config, before anything compiles."""

import dataclasses
import pathlib

from ml_collections import ConfigDict
import numpy as np

from eqflow import files
from eqflow.config import consistency
from eqflow.config.errors import ABSENT, ConfigError
from eqflow.data import pairs, pipeline, sources
from eqflow.runs.run import Run


def open_source(config: ConfigDict, *, split: str | None = None) -> sources.Source:
  """The data set of config.data; its num_classes is 0 if the config does not use its labels.

  Raises ConfigError if it cannot be opened, has another shape, or has labels that are not classes.
  """
  section = config.data
  shape, split = tuple(section.shape), split or section.split
  size, channels = (shape[:2], shape[2]) if len(shape) == 3 else (None, 3)
  try:
    source = sources.load(
        section.name, split=split, size=size, channels=channels,
        data_dir=files.resolved(section.dir) if section.dir else None)
  except (ValueError, OSError, NotImplementedError) as error:
    raise ConfigError('data', ABSENT, f'name={section.name!r}, dir={section.dir!r}, split={split!r} '
                      f'cannot be opened: {error}') from error
  consistency.check_source(config, source)
  return dataclasses.replace(source, num_classes=section.num_classes)


def described(source: sources.Source) -> str:
  """One line: the records, the classes with their labels, and the number of files left out."""
  names = ', '.join(f'{label} {files.shown(name)}' for label, name in enumerate(source.classes[:20]))
  more = ', ...' if len(source.classes) > 20 else ''
  # Names such as '0', '1', '2' say nothing.
  named = any(name != str(label) for label, name in enumerate(source.classes))
  named = f': {names}{more}' if named else ''
  classes = f', {len(source.classes)} classes{named}' if source.classes else ''
  left = f'; {len(source.left_out):,} files are left out, see data.json' if source.left_out else ''
  return f'{source.name}: {len(source):,} records of shape {source.shape}{classes}{left}'


def class_names(workdir: pathlib.Path) -> tuple[str, ...]:
  """The names of the classes of the run in workdir, from its data.json; () if they have no names."""
  path = workdir / 'data.json'
  return tuple(files.read_json(path)['classes']) if path.exists() else ()


def training_records(config: ConfigDict) -> np.ndarray:
  """The training records [n, ...]; with config.data.flip, followed by their mirror images."""
  x = pipeline.arrays(open_source(config))[0]
  return np.concatenate([x, x[:, :, ::-1]]) if config.data.flip else x


def evaluation_source(run: Run, *, few: bool = False) -> sources.Source:
  """The records that samples are compared with: config.evaluate.split of config.data.

  For pairs: the data behind them, see `behind_pairs`. Raises ValueError for a batch that does not
  divide by the devices, an unknown split, or too few records, except with `few`.
  """
  source = open_source(behind_pairs(run.config), split=run.config.evaluate.split)
  if not few:
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
