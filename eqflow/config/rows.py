"""A row of a table: a function that a config names, and its numbers with their limits.

A section {'name': a row, **numbers} becomes the row's function with its numbers: bound to it, or, for a
row that is `made`, passed to it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jax.tree_util import Partial
from ml_collections import ConfigDict

from eqflow.config.errors import ABSENT, ConfigError, naming
from eqflow.config.kinds import Kind, one_of


class Needed(NamedTuple):
  """The kind of a number without a default, and a value that an error can suggest."""
  kind: Kind
  example: Any


class Row(NamedTuple):
  """A function, the kinds of its numbers, and what it receives besides them."""
  function: Any
  numbers: Mapping[str, Kind]
  required: Mapping[str, Any]   # an example of each number without a default
  received: tuple[str, ...]     # arguments that come from other sections
  called: bool                  # True: the row's function is called, and its result is used


Table = Mapping[str, Row]


def row(function: Any, *received: str, **numbers: Kind | Needed) -> Row:
  """The function itself, with its numbers bound."""
  return Row(function, *_kinds(numbers), received, called=False)


def made(function: Callable, *received: str, **numbers: Kind | Needed) -> Row:
  """What the function returns, called with its numbers."""
  return Row(function, *_kinds(numbers), received, called=True)


def _kinds(numbers):
  """(the kinds of all numbers, the examples of the needed ones)."""
  required = {name: each for name, each in numbers.items() if isinstance(each, Needed)}
  return (numbers | {name: each.kind for name, each in required.items()},
          {name: each.example for name, each in required.items()})


def flag_of(key: str, section: Mapping[str, Any]) -> str:
  """The flag of the command line that sets a whole section."""
  return f'--config.{key}="{section}"'


def checked(table: Table, section: Any, key: str,
            apart: tuple[str, ...] = ()) -> tuple[Row, dict[str, Any]]:
  """(the row that section.name names, its numbers), without the keys that are `apart` from them.

  Raises ConfigError for a name, a number or a value that the table does not have.
  """
  if not isinstance(section, ConfigDict) or 'name' not in section:
    # The name of a row alone is what users write first.
    first = section if isinstance(section, str) and section in table else sorted(table)[0]
    raise ConfigError(key, section, f'must be a section with a name from {sorted(table)}',
                      f'use {flag_of(key, dict(name=first) | table[first].required)}')
  name = section.name
  row, found = one_of(table)(name, f'{key}.name'), {}
  known = {each: value for each, value in section.to_dict().items()
           if each in ('name', *apart, *row.numbers)}
  whole = dict(name=name) | row.required | known
  remedy = f'give the whole section, such as {flag_of(key, whole)}'
  for number, value in section.items():
    if number == 'name' or number in apart:
      continue
    if number not in row.numbers:
      takes = sorted(row.numbers) or 'no numbers'
      raise ConfigError(f'{key}.{number}', value, f'is unknown: {name!r} takes {takes}, and '
                        'a new name keeps the numbers of the old one', remedy)
    found[number] = row.numbers[number](value, f'{key}.{number}')
  missing = sorted(set(row.required) - set(found))
  if missing:
    raise ConfigError(key, ABSENT, f'{name!r} also needs {missing}', remedy)
  return row, found


def bind(table: Table, section: Any, key: str, **others: Any) -> Any:
  """What the section means: its row's function with its numbers, and what it receives of `others`."""
  row, found = checked(table, section, key)
  found |= {name: others[name] for name in row.received}
  if not row.called:
    return Partial(row.function, **found) if found else row.function
  with naming(key):
    return row.function(**found)


def section_of(table: Table) -> Kind:
  """The kind of a section that names a row of the table."""
  return lambda value, key: bind(table, value, key)
