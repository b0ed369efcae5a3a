"""The defaults of a config, and how a config says what differs from them.

The defaults are in the table of keys, eqflow/config/schema.py.
"""

import functools
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from eqflow.config.errors import ABSENT
from eqflow.config.reading import numbered
from eqflow.config.schema import KEYS


def config(*changes: Mapping[str, Any]) -> ConfigDict:
  """The defaults, changed by each of `changes` in turn.

  A section with a name replaces another with a name, since each row has its own numbers; other
  sections change key by key.
  """
  defaults = (_nested(key, each.default) for key, each in KEYS.items() if each.default is not ABSENT)
  found = functools.reduce(_changed, [*defaults, *changes], {})
  return ConfigDict(_changed(found, dict(sample=dict(scale=numbered(found['sample']['scale'])))))


def variant(variants: Mapping[str, Any], name: str) -> Any:
  """variants[name]. Raises ValueError with the names that exist."""
  if name not in variants:
    raise ValueError(f'no variant {name!r}: use one of {sorted(variants)}')
  return variants[name]


def _nested(key, value):
  """{'train': {'batch': value}} of the key 'train.batch'."""
  return functools.reduce(lambda inner, name: {name: inner}, reversed(key.split('.')), value)


def _changed(old, new):
  if not (isinstance(old, dict) and isinstance(new, dict)) or ('name' in old and 'name' in new):
    return new
  return old | {key: _changed(old[key], value) if key in old else value for key, value in new.items()}
