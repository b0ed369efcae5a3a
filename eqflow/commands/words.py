"""One sentence for a command line that absl or ml_collections rejects, in words of the config."""

import ast
from collections.abc import Mapping
import difflib
import functools
import re
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from eqflow.config import rows, schema
from eqflow.config.errors import ConfigError

_KEY = re.compile(r'config(\.\w+(\[\d+\])*)+')
# What Python and absl say of a value, and what we say.
_VALUES = {'invalid literal for int': 'must be a whole number',
           'could not convert string to float': 'must be a number',
           'Non-boolean argument': 'must be true or false'}


def of(error: Exception, argv: list[str]) -> str:
  """The sentence about a command line that raises `error` when it is parsed."""
  given = {name.lstrip('-'): value for name, _, value in (arg.partition('=') for arg in argv)}
  text = str(error).removeprefix('flag ').removeprefix('ERROR:: ')
  text = text.replace(f'--config={given.get("config")}: ', '--config: ', 1)
  if broken := [flag for flag in given if flag.startswith('config.') and not _KEY.fullmatch(flag)]:
    return f'--{broken[0]} is not a key of a config; write it as in --config.train.batch=64'
  if isinstance(error, (AttributeError, KeyError)):
    return _wrong_key(given) or text
  if found := re.match(r'--config\.([\w.]+)=', text):
    return _wrong_value(given['config'], found[1], given.get(f'config.{found[1]}', ''), text)
  for theirs, ours in _VALUES.items():
    if theirs in text:
      return f'{text.partition(": ")[0]} {ours}'
  return text


def _wrong_value(file, key, given, text):
  """The sentence about the value `given` of a key that has another kind of value."""
  *path, name = key.split('.')
  literal = _literal(given)
  for value in (literal if isinstance(literal, (int, float, tuple)) else given, given):
    config = flags.FLAGS['config'].parser.parse(file).unlock()
    try:
      with config.ignore_type():
        functools.reduce(getattr, path, config)[name] = value
      schema.check(config)
    except ConfigError as error:
      return str(error)
    except (LookupError, AttributeError, TypeError, ValueError):
      return text
  return text


def _wrong_key(given):
  """The sentence about the first key that the config does not have, or ''."""
  config = flags.FLAGS['config'].parser.parse(given['config'])
  for flag in given:
    path, found = flag.removeprefix('no').split('.'), config
    for i, name in enumerate(path[1:] if path[0] == 'config' else (), 1):
      parent = '.'.join(path[:i])
      if not isinstance(found, ConfigDict):
        return f'{flag} is not a key of the config: {parent} is a value, not a section'
      if name not in found:
        near = difflib.get_close_matches(name, found, 1)
        remedy = f'Did you mean "{near[0]}"?' if near else _whole_section(config, given, flag)
        return f'{flag} is not a key of the config. {remedy or f"{parent} has {sorted(found)}"}'
      found = found[name]
  return ''


def _whole_section(config: ConfigDict, given: Mapping[str, str], key: str) -> str:
  """How to give 'config.sample.solver.churn' to a solver without churn in its section, or ''.

  The section comes from the command line, else from the file of --config.
  """
  (parent, _, name), path = key.rpartition('.'), key.split('.')[1:-1]
  try:
    section = functools.reduce(getattr, path, config).to_dict()
    if parent in given:
      section = _literal(given[parent])
    section |= {name: _literal(given[key])}
    config = config.unlock()
    functools.reduce(getattr, path[:-1], config)[path[-1]] = ConfigDict(section)
    schema.check(config)
  except ConfigError as error:
    return '; '.join(filter(None, (error.allowed.removeprefix('is unknown: '), error.remedy)))
  except (LookupError, AttributeError, TypeError, ValueError):
    return ''
  return f'Give the whole section: {rows.flag_of(parent.removeprefix("config."), section)}'


def _literal(text: str) -> Any:
  """The Python value of a text, or the text."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return text
