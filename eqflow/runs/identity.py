"""The identity of a run: which keys of its config decide its numbers, and their digest."""

import hashlib
import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from eqflow import files
from eqflow.config.schema import KEYS
from eqflow.config.tables import SCHEDULES

# Keys that do not change the trained numbers: sampling, evaluation, logging, placement.
FREE = tuple(key for key, each in KEYS.items() if each.free)


def check_config(config: ConfigDict, workdir: pathlib.Path) -> None:
  """Raises ValueError if workdir contains a run of another config, with every key that differs.

  Keys in FREE may differ, and train.num_examples, if the schedule of the learning rate does not depend
  on it.
  """
  path, ours = workdir / 'config.json', flat(config)
  if workdir.exists() and not workdir.is_dir():
    raise ValueError(f'--workdir={workdir} is a file; give a folder')
  if not path.exists():
    return
  try:
    theirs = flat(files.read_json(path))
  except (ValueError, AttributeError) as error:
    raise ValueError(f'{path} cannot be read ({error}); give another --workdir, or delete the file: '
                     'the given config replaces it') from error
  free = _free(config)
  differ = [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)
            and not any(key == name or key.startswith(name + '.') for name in free)]
  if differ:
    value = lambda found, key: repr(found[key]) if key in found else 'absent'
    changes = ', '.join(f'config.{key}: {value(theirs, key)} there, {value(ours, key)} given'
                        for key in differ)
    if 'train.num_examples' in differ:
      changes += (f'; config.optimizer.schedule.name={config.optimizer.schedule.name!r} depends on the '
                  'length of the training')
    raise ValueError(f'{workdir} contains a run of another config ({changes}); give another --workdir, '
                     'or the config of that run')


def _free(config):
  """FREE, with the length of the training unless the schedule receives it, as cosine does."""
  lasting = 'num_examples' in SCHEDULES[config.optimizer.schedule.name].received
  return FREE if lasting else (*FREE, 'train.num_examples')


def flat(config: Any, prefix: str = '') -> dict[str, Any]:
  """{'train.batch': 64, ...}: the values of the config by their dotted keys."""
  if isinstance(config, ConfigDict):
    config = json.loads(config.to_json_best_effort())
  out = {}
  for key, value in config.items():
    if isinstance(value, dict):
      out.update(flat(value, f'{prefix}{key}.'))
    else:
      out[prefix + key] = value
  return out


def identity(config: ConfigDict) -> str:
  """The name of a run in snapshots and checkpoints: a digest of the keys that decide its numbers."""
  kept = {key: value for key, value in flat(config).items()
          if not any(key == name or key.startswith(name + '.') for name in _free(config))}
  return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]
