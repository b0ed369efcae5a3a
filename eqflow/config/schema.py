"""The keys of a config: kind, default, and whether a run continues with another value.

Rules about two sections are in consistency.py.
"""

from collections.abc import Mapping
import functools
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from eqflow.config.errors import ABSENT, ConfigError
from eqflow.config.kinds import Kind, flag, number, one_of, section, several, text, whole
from eqflow.config.networks import APART
from eqflow.config.rows import checked, section_of
from eqflow.config.tables import (
    BELOW_ONE, C_NOISE, COUNT, COUPLINGS, DENSITIES, DESCENTS, ENERGIES, FRACTION, GRIDS, INTERVALS,
    MODELS, NOT_NEGATIVE, OUTPUTS, POSITIVE, PROCESSES, SCALES, SCHEDULES, SOLVERS, SPACES, STEPS,
    WEIGHTS)
from eqflow.training import snapshots


def _row(table):
  """A section that names a row: checked, but not made, since a row may need other sections."""
  def check(value, key):
    checked(table, value, key)
  return check


def _model(value, key):
  checked(MODELS, value, key, apart=APART)


def _scale(value, key):
  """A number, or one for each channel."""
  if isinstance(value, (tuple, list)):
    for i, each in enumerate(value):
      number()(each, f'{key}[{i}]')
  else:
    number()(value, key)


class Key(NamedTuple):
  """A key of a config: the kind of its value, and its default, unless a config file must give it.

  free: it does not change the trained numbers, so that a run may continue with another value.
  """
  kind: Kind
  default: Any = ABSENT
  free: bool = False


_free = functools.partial(Key, free=True)
# uint32 counts examples.
_EXAMPLES = whole(1, 2**32 - 2)
KEYS = {
    'seed': Key(whole(0, 2**32 - 1), 0),
    'data.name': Key(text),
    'data.split': Key(text),
    # Where the data are; what they are is in data.json: runs/claim.py.
    'data.dir': _free(text),
    'data.shape': Key(several(COUNT, least=1)),
    'data.num_classes': Key(whole(0)),
    'data.flip': Key(flag, False),
    'data.workers': _free(whole(0, 1024), 0),
    'model': Key(_model),
    'model.scale_input': Key(section_of(SCALES), dict(name='unit')),
    'model.c_noise': Key(section_of(C_NOISE)),
    'process': Key(_row(PROCESSES), dict(name='linear')),
    'output': Key(_row(OUTPUTS)),
    'loss.space': Key(one_of({'': None, **SPACES}), ''),
    'loss.weight': Key(_row(WEIGHTS), dict(name='ones')),
    'loss.density': Key(_row(DENSITIES), dict(name='uniform')),
    'loss.stratified': Key(flag, True),
    'loss.coupling': Key(_row(COUPLINGS), dict(name='independent')),
    'loss.at_data': Key(BELOW_ONE, 0.0),
    'loss.dispersive': Key(NOT_NEGATIVE, 0.0),
    'loss.uncertainty': Key(whole(0, 2**20), 0),
    'energy': Key(_row(ENERGIES), dict(name='none')),
    # Devices by what they shard: examples; parameters too; layers. -1: the rest.
    'mesh.data': _free(whole(-1), -1),
    'mesh.fsdp': _free(whole(-1), 1),
    'mesh.tensor': _free(whole(-1), 1),
    'train.batch': Key(COUNT),
    'train.accumulate': Key(COUNT, 1),
    # Free if the schedule of the learning rate does not depend on it: runs/identity.py.
    'train.num_examples': Key(_EXAMPLES),
    # Training stops there, to continue later; 0: at num_examples.
    'train.until_examples': _free(whole(0, 2**32 - 2), 0),
    'train.drop_label': Key(FRACTION, 0.0),
    'train.log_examples': _free(COUNT),
    'train.sample_examples': _free(COUNT),
    'train.checkpoint_examples': _free(COUNT),
    'train.keep_checkpoints': _free(COUNT, 2),
    'train.max_skipped': _free(whole(0), 0),
    'train.stuck_seconds': _free(NOT_NEGATIVE, 600.0),
    # A folder of compiled programs, for all runs; '': compile at every start.
    'train.compile_cache': _free(text, '~/.cache/eqflow/xla'),
    'optimizer.rate': Key(NOT_NEGATIVE),
    'optimizer.b1': Key(BELOW_ONE, 0.9),
    'optimizer.b2': Key(BELOW_ONE, 0.999),
    'optimizer.eps': Key(NOT_NEGATIVE, 1e-8),
    'optimizer.weight_decay': Key(NOT_NEGATIVE, 0.0),
    'optimizer.clip': Key(NOT_NEGATIVE, 0.0),
    'optimizer.warmup_examples': Key(NOT_NEGATIVE),
    'optimizer.schedule': Key(_row(SCHEDULES), dict(name='cosine')),
    'ema.decays': Key(several(number(above=0, below=1)), (0.999,)),
    'ema.stds': Key(several(POSITIVE), ()),
    'ema.snapshot_examples': _free(whole(0), 0),
    'ema.snapshot_dtype': _free(one_of(dict.fromkeys(snapshots.DTYPES)), 'float32'),
    'sample.params': _free(text, '0.999'),
    'sample.batch': _free(COUNT),
    # A descent ignores the grid, and stops a sample where the norm of the field is below the
    # threshold; 0 never stops one.
    'sample.grid': _free(_row(GRIDS), dict(name='uniform', start=1.0, end=0.0)),
    'sample.threshold': _free(NOT_NEGATIVE, 0.0),
    'sample.solver': _free(_row({**SOLVERS, **DESCENTS})),
    'sample.num_steps': _free(STEPS),
    # Guidance, off at scale 1: away from the null class, which needs train.drop_label above 0, or from
    # a weaker run, the params of guide.workdir.
    'sample.scale': _free(_scale, 1.0),
    'sample.rescale': _free(FRACTION, 0.0),
    'sample.interval': _free(_row(INTERVALS), dict(name='always')),
    'sample.guide.workdir': _free(text, ''),
    'sample.guide.params': _free(text, ''),
    'evaluate.split': _free(text),
    # Precision and recall look at third neighbours.
    'evaluate.num_samples': _free(whole(4)),
}
# Sections in which other keys are numbers of the row.
OPEN = 'model',


def check(config: ConfigDict) -> None:
  """Raises ConfigError for a key that is missing or unknown, or has a value of another kind."""
  for path, keys in SECTIONS.items():
    found = config
    for name in path.split('.') if path else ():
      found = found[name]
    _check_section(found, path, keys)


def _sections(keys: Mapping[str, Key]) -> dict[str, dict[str, Kind]]:
  """{'': {'seed': kind, 'data': section, ...}, 'data': {'name': kind, ...}, ...}."""
  found = {'': {}}
  for key, (kind, *_) in keys.items():
    path = ''
    for name in key.split('.')[:-1]:
      found[path].setdefault(name, section)
      path = f'{path}.{name}'.lstrip('.')
      found.setdefault(path, {})
    found[path][key.rpartition('.')[2]] = kind
  return found


SECTIONS = _sections(KEYS)


def _check_section(found: ConfigDict, path: str, keys: Mapping[str, Kind]) -> None:
  dotted = lambda key: f'{path}.{key}' if path else key
  for key in found:
    if key not in keys and path not in OPEN:
      raise ConfigError(dotted(key), found[key],
                        f'is unknown: config{path and "."}{path} has {sorted(keys)}')
  for key, check_value in keys.items():
    if key in found:
      check_value(found[key], dotted(key))
    else:
      default = KEYS[dotted(key)].default if dotted(key) in KEYS else ABSENT
      raise ConfigError(dotted(key), ABSENT, 'is missing', 'see eqflow/config/schema.py'
                        if default is ABSENT else f'its default is {default!r}')
