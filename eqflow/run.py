"""A run's folder and data: claimed by one config, and opened before anything compiles."""

import json
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from eqflow import build
from eqflow.data import sources
from eqflow.training import checkpoint, sharding, step as steps

# Sections and keys that do not change what a run computes, only what is looked at and when.
FREE = ('sample', 'evaluate', 'data.dir', 'data.workers', 'train.log_examples',
        'train.sample_examples', 'train.checkpoint_examples', 'train.keep_checkpoints')


def open_source(config: ConfigDict, *, split: str | None = None) -> sources.Source:
  """The data set of config.data. Raises ValueError where shape or classes are not the config's."""
  section = config.data
  shape = tuple(section.shape)
  size, channels = (shape[0], shape[2]) if len(shape) == 3 else (None, None)
  source = sources.load(
      section.name, split=split or section.split, size=size, channels=channels or 3,
      data_dir=pathlib.Path(section.dir).expanduser() if section.dir else None)
  if tuple(source.shape) != shape:
    raise ValueError(f'config.data.shape={shape}, but {source.name} has records of '
                     f'{tuple(source.shape)}: set config.data.shape to that')
  if section.num_classes not in (0, source.num_classes):
    raise ValueError(f'config.data.num_classes={section.num_classes}, but {source.name} has '
                     f'{source.num_classes}: set it to that, or to 0 to train without labels')
  return source


def claim(config: ConfigDict, workdir: pathlib.Path) -> None:
  """Writes config.json to workdir; raises ValueError where another config's run is there.

  The message names every key that differs. Keys that only say what is looked at may differ.
  """
  path = workdir / 'config.json'
  ours = flat(config)
  if path.exists():
    theirs = flat(json.loads(path.read_text()))
    differ = [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)
              and not any(key == free or key.startswith(free + '.') for free in FREE)]
    if differ:
      changes = ', '.join(f'config.{key}: {theirs.get(key)!r} there, {ours.get(key)!r} given'
                          for key in differ)
      raise ValueError(f'{workdir} holds a run of another config ({changes}): give another '
                       '--workdir, or the config it was made with')
  if jax.process_index() == 0:
    workdir.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix('.partial')
    partial.write_text(json.dumps(json.loads(as_json(config)), indent=2) + '\n')
    partial.replace(path)


def as_json(config: Any) -> str:
  """The resolved config as JSON."""
  return config.to_json_best_effort() if isinstance(config, ConfigDict) else json.dumps(config)


def flat(config: Any, prefix: str = '') -> dict[str, Any]:
  """{'train.batch': 64, ...}: the config's numbers by their dotted keys."""
  if isinstance(config, ConfigDict):
    config = json.loads(as_json(config))
  out = {}
  for key, value in config.items():
    if isinstance(value, dict):
      out.update(flat(value, f'{prefix}{key}.'))
    else:
      out[prefix + key] = value
  return out


def restore(config: ConfigDict, recipe: build.Recipe, workdir: pathlib.Path) -> tuple[int, Any]:
  """(step, params): the parameters called config.sample.params, of the newest checkpoint.

  Raises FileNotFoundError where there is none.
  """
  mesh = sharding.device_mesh()
  state = steps.create(recipe.init, recipe.optimizer, build.ema_names(config), config.seed, mesh)
  with checkpoint.open_checkpoints(workdir, keep=config.train.keep_checkpoints) as checkpoints:
    restored = checkpoint.restore(checkpoints, state)
  if restored is None:
    raise FileNotFoundError(f'{workdir} holds no checkpoint: train first, with --mode=train and the '
                            'same --config and --workdir')
  return int(restored.step), steps.parameters(restored, config.sample.params)
