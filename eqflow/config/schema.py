"""The keys of a config, each with the kind of its value. Rules about two sections: consistency.py."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from eqflow.config.errors import ABSENT, ConfigError
from eqflow.config.kinds import Kind, flag, number, one_of, section, several, text, whole
from eqflow.config.networks import APART
from eqflow.config.rows import checked, section_of
from eqflow.config.tables import (
    BELOW_ONE, COUNT, COUPLINGS, DENSITIES, DESCENTS, ENERGIES, FRACTION, GRIDS, INTERVALS, LABELS,
    MODELS, NOT_NEGATIVE, OUTPUTS, POSITIVE, PROCESSES, SCALES, SCHEDULES, SOLVERS, SPACES, WEIGHTS)
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


# uint32 counts examples.
_EXAMPLES = whole(1, 2**32 - 2)
KEYS: dict[str, dict[str, Kind]] = {
    '': dict(
        seed=whole(0, 2**32 - 1), data=section, model=_model, process=_row(PROCESSES),
        output=_row(OUTPUTS), loss=section, energy=_row(ENERGIES), mesh=section, train=section,
        optimizer=section, ema=section, sample=section, evaluate=section),
    'data': dict(
        name=text, split=text, dir=text, shape=several(COUNT, least=1), num_classes=whole(0), flip=flag,
        workers=whole(0, 1024)),
    'loss': dict(
        space=one_of({'': None, **SPACES}), weight=_row(WEIGHTS), density=_row(DENSITIES),
        stratified=flag, coupling=_row(COUPLINGS), at_data=BELOW_ONE, dispersive=NOT_NEGATIVE,
        uncertainty=whole(0, 2**20)),
    # -1: as many devices as are left.
    'mesh': dict.fromkeys(('data', 'fsdp', 'tensor'), whole(-1)),
    'train': dict(
        batch=COUNT, accumulate=COUNT, num_examples=_EXAMPLES, drop_label=FRACTION,
        log_examples=COUNT, sample_examples=COUNT, checkpoint_examples=COUNT, keep_checkpoints=COUNT,
        max_skipped=whole(0), stuck_seconds=NOT_NEGATIVE),
    'optimizer': dict(
        rate=NOT_NEGATIVE, b1=BELOW_ONE, b2=BELOW_ONE, eps=NOT_NEGATIVE, weight_decay=NOT_NEGATIVE,
        clip=NOT_NEGATIVE, warmup_examples=NOT_NEGATIVE, schedule=_row(SCHEDULES)),
    'ema': dict(
        decays=several(number(above=0, below=1)), stds=several(POSITIVE), snapshot_examples=whole(0),
        snapshot_dtype=one_of(dict.fromkeys(snapshots.DTYPES))),
    'sample': dict(
        params=text, batch=COUNT, threshold=NOT_NEGATIVE, scale=_scale, rescale=FRACTION,
        interval=_row(INTERVALS), guide=section, solver=_row({**SOLVERS, **DESCENTS}), num_steps=COUNT,
        grid=_row(GRIDS)),
    'sample.guide': dict(workdir=text, params=text),
    # Precision and recall look at third neighbours.
    'evaluate': dict(split=text, num_samples=whole(4)),
    'model': dict(scale_input=section_of(SCALES), label_noise=section_of(LABELS)),
}
# Sections in which other keys are numbers of the row.
OPEN = 'model',


def check(config: ConfigDict) -> None:
  """Raises ConfigError for a key that is missing or unknown, or has a value of another kind."""
  for path, keys in KEYS.items():
    found = config
    for name in path.split('.') if path else ():
      found = found[name]
    _check_section(found, path, keys)


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
      raise ConfigError(dotted(key), ABSENT, 'is missing', 'see eqflow/config/defaults.py')
