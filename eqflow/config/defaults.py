"""What all configs share, and how a config says what differs.

A new key is a line here and its kind in KEYS of schema.py. Two runs that differ in it are two runs,
unless it is in FREE of runs/identity.py.
"""

import functools
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference

DEFAULTS = dict(
    seed=0,
    data=dict(flip=False, workers=0),
    model=dict(scale_input=dict(name='unit')),
    process=dict(name='linear'),
    loss=dict(space='', weight=dict(name='ones'), density=dict(name='uniform'), stratified=True,
              coupling=dict(name='independent'), at_data=0.0, dispersive=0.0, uncertainty=0),
    energy=dict(name='none'),
    # Devices by what they shard: examples; parameters too; layers. -1: the rest.
    mesh=dict(data=-1, fsdp=1, tensor=1),
    train=dict(accumulate=1, drop_label=0.0, keep_checkpoints=2, max_skipped=0, stuck_seconds=600.0),
    optimizer=dict(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip=0.0,
                   schedule=dict(name='cosine')),
    ema=dict(decays=(0.999,), stds=(), snapshot_examples=0, snapshot_dtype='float32'),
    # grid: a descent ignores it.
    # threshold: a descent stops a sample where the norm of the field is below it; 0 never stops one.
    # scale, rescale, interval: guidance, off at scale 1; away from the null class, which needs
    # train.drop_label above 0, or from a weaker run, params of guide.workdir.
    sample=dict(params='0.999', grid=dict(name='uniform', start=1.0, end=0.0), threshold=0.0, scale=1.0,
                rescale=0.0, interval=dict(name='always'), guide=dict(workdir='', params='')),
)


def config(*changes: Mapping[str, Any]) -> ConfigDict:
  """DEFAULTS, changed by each of `changes` in turn.

  A section with a name replaces another with a name, since each row has its own numbers; other
  sections change key by key.
  """
  found = functools.reduce(_changed, changes, DEFAULTS)
  # A flag may replace the number by a tuple, one for each channel.
  scale = FieldReference(found['sample']['scale'], field_type=object)
  return ConfigDict(_changed(found, dict(sample=dict(scale=scale))))


def variant(variants: Mapping[str, Any], name: str) -> Any:
  """variants[name]. Raises ValueError with the names that exist."""
  if name not in variants:
    raise ValueError(f'no variant {name!r}: use one of {sorted(variants)}')
  return variants[name]


def _changed(old, new):
  if not (isinstance(old, dict) and isinstance(new, dict)) or ('name' in old and 'name' in new):
    return new
  return old | {key: _changed(old[key], value) if key in old else value for key, value in new.items()}
