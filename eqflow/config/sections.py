"""Sections of a config: {'name': row of a table, **the row's numbers}, checked and bound.

Whatever does not fit is refused by its key, with what exists.
"""

from collections.abc import Callable, Mapping
import inspect
import math
import numbers as kinds
from typing import Any

from jax.tree_util import Partial
from ml_collections import ConfigDict

from eqflow.config.errors import ABSENT, ConfigError, naming


def choose(table: Mapping[str, Any], name: Any, path: str) -> Any:
  """table[name]. Raises ValueError with the table's names."""
  if not isinstance(name, str) or name not in table:
    raise ConfigError(path, name, f'must be one of {sorted(table)}')
  return table[name]


def row_of(table: Mapping[str, Any], section: Any, path: str) -> Any:
  """The row that section.name names. Raises ValueError where the section is none."""
  if not isinstance(section, ConfigDict) or 'name' not in section:
    raise ConfigError(path, section, 'must be a section',
                      f"write {{'name': one of {sorted(table)}, and its numbers}}")
  return choose(table, section.name, f'{path}.name')


def bound(table: Mapping[str, Any], section: Any, path: str, *,
          nested: Mapping[str, Mapping] | None = None, made: Mapping[str, Mapping] | None = None,
          **given: Any) -> Any:
  """The row named by section.name, its numbers bound with one Partial. Raises as `numbers` does."""
  row = row_of(table, section, path)
  found = numbers(row, section, path, nested=nested, made=made, **given)
  return Partial(row, **found) if found else row


def called(table: Mapping[str, Any], section: Any, path: str, **given: Any) -> Any:
  """The row named by section.name, called with its numbers. Raises as `numbers` does."""
  row = row_of(table, section, path)
  found = numbers(row, section, path, **given)
  with naming(path):
    return row(**found)


def numbers(row: Callable, section: Any, path: str, *,
            nested: Mapping[str, Mapping] | None = None,
            made: Mapping[str, Mapping] | None = None, unbounded: bool = False,
            **given: Any) -> dict[str, Any]:
  """The numbers that `row` takes, from the section, or from `given` where the config has none.

  A number that is itself a function is a section of its own, its table found in `nested` by key;
  arrays that a function returns by name, in `made`. Raises ValueError naming the key that is
  unknown, missing or no finite number (a whole one, True or False where the row's default is one;
  with `unbounded` infinite too).
  """
  needs, nested, made = needed(row), nested or {}, made or {}
  found = {key: value for key, value in given.items() if key in needs}
  remedy = f'write the whole section, as --config.{path}="{{\'name\': {section.name!r}, ...}}"'
  for key, value in section.items():
    if key == 'name':
      continue
    if key not in needs or key in given:
      takes = sorted(set(needs) - set(given)) or 'no numbers'
      raise ConfigError(f'{path}.{key}', value, f'is not a number of {section.name!r}, which takes '
                        f'{takes}',
                        remedy)
    if key in nested and not isinstance(_default(row, key), float):
      found[key] = bound(nested[key], value, f'{path}.{key}', nested=nested, made=made, **given)
    elif key in made:
      found |= called(made[key], value, f'{path}.{key}')
    elif isinstance(_default(row, key), bool):
      if not isinstance(value, bool):
        raise ConfigError(f'{path}.{key}', value, 'must be True or False')
      found[key] = value
    elif isinstance(_default(row, key), int) and (
        isinstance(value, bool) or not isinstance(value, int)):
      raise ConfigError(f'{path}.{key}', value, 'must be a whole number')
    else:
      infinite = unbounded and isinstance(value, float) and math.isinf(value)
      found[key] = value if infinite else finite(value, f'{path}.{key}')
  missing = [key for key, required in needs.items() if required and key not in found]
  if missing:
    raise ConfigError(path, ABSENT, f'{section.name!r} also needs {missing}', remedy)
  return found


def finite(value: Any, path: str, *, least: float | int = -math.inf,
           most: float | int = math.inf) -> Any:
  """value, where it is a finite number in [least, most]. Raises ValueError naming the key."""
  number = isinstance(value, kinds.Real) and not isinstance(value, bool) and math.isfinite(value)
  if not number or not least <= value <= most:
    limits = {(True, True): '', (False, True): f' of {least:.10g} or more',
              (True, False): f' of {most:.10g} or less'}.get(
                  (math.isinf(least), math.isinf(most)), f' from {least:.10g} to {most:.10g}')
    raise ConfigError(path, value, f'must be a finite number{limits}')
  return value


def needed(row: Callable) -> dict[str, bool]:
  """{name: whether it is required} of the numbers that a row takes."""
  function = row.func if isinstance(row, Partial) else row
  # What the library passes, not the config.
  skip = ('process', 't', 'output', 'gamma', 'logsnr', 'examples', 'keys', 'x', 'k', 'drifted',
          'flowed')
  return {name: p.default is p.empty for name, p in inspect.signature(function).parameters.items()
          if name not in skip or p.kind is p.KEYWORD_ONLY}


def _default(row, key):
  function = row.func if isinstance(row, Partial) else row
  return inspect.signature(function).parameters[key].default
