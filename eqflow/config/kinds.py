"""Kinds of values that a key of a config holds: each checks one value, and names its key and limits.

A kind is a function (value, key) -> the value to use. It raises ConfigError.
"""

from collections.abc import Callable, Mapping
import math
import numbers
from typing import Any

from ml_collections import ConfigDict

from eqflow.arrays import Number
from eqflow.config.errors import ConfigError

Kind = Callable[[Any, str], Any]
LARGEST = 2**31 - 1


def number(least: Number = -math.inf, most: Number = math.inf, *, above: Number = -math.inf,
           below: Number = math.inf, infinite: bool = False) -> Kind:
  """A real number in [least, most] and in (above, below); finite, unless `infinite`."""
  words = (('at least', least), ('at most', most), ('above', above), ('below', below))
  limits = [f'{word} {limit:.10g}' for word, limit in words if math.isfinite(limit)]
  allowed = ', '.join(['must be a finite number', ' and '.join(limits)]).rstrip(', ')

  def check(value, key):
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (real and least <= value <= most and (infinite or math.isfinite(value) and (
        above < value < below))):
      raise ConfigError(key, value, allowed)
    return value

  return check


def whole(least: int = -LARGEST, most: int = LARGEST) -> Kind:
  """A whole number in [least, most]."""
  def check(value, key):
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not (whole and least <= value <= most):
      raise ConfigError(key, value, f'must be a whole number from {least} to {most}')
    return value

  return check


def flag(value: Any, key: str) -> bool:
  """True or False."""
  if not isinstance(value, bool):
    raise ConfigError(key, value, 'must be True or False')
  return value


def text(value: Any, key: str) -> str:
  """A string."""
  if not isinstance(value, str):
    raise ConfigError(key, value, 'must be a string')
  return value


def one_of(table: Mapping[str, Any]) -> Kind:
  """table[value]."""
  def choose(value, key):
    if not isinstance(value, str) or value not in table:
      raise ConfigError(key, value, f'must be one of {sorted(table)}')
    return table[value]

  return choose


def several(kind: Kind, *, least: int = 0) -> Kind:
  """A tuple of `least` or more values of a kind."""
  def check(value, key):
    what = f'must be a tuple{" of one or more" if least else ""}'
    if not isinstance(value, (tuple, list)) or len(value) < least:
      raise ConfigError(key, value, what)
    try:
      return tuple(kind(each, key) for each in value)
    except ConfigError as error:
      raise ConfigError(key, value, f'{what}; each value {error.allowed}', error.remedy) from error

  return check


def optional(kind: Kind) -> Kind:
  """None, or a value of the kind."""
  return lambda value, key: None if value is None else kind(value, key)


def section(value: Any, key: str) -> ConfigDict:
  """A section; its keys have their own kinds."""
  if not isinstance(value, ConfigDict):
    raise ConfigError(key, value, 'must be a section',
                      f'give its keys one by one, as in --config.{key}.KEY=VALUE')
  return value
