"""A config from its file: a Python file with get_config, or the config.json of a run."""

import importlib.util
import pathlib
import sys
import textwrap
import traceback
from typing import Any

from ml_collections import ConfigDict, FieldReference

from eqflow import files

_ADVICE = 'give a file of configs/, such as configs/digits.py, or the config.json of a run'


def read(given: str) -> ConfigDict:
  """The config of 'file.py', of 'file.py:variant', or of a run's 'config.json', locked.

  Raises ValueError in one sentence, with the line of the user's file at which it fails.
  """
  if not given:
    raise ValueError(f'no file is given; {_ADVICE}')
  path, variant = (given, []) if pathlib.Path(given).is_file() else _parted(given)
  file = pathlib.Path(path).expanduser()
  if file.is_dir():
    raise ValueError(f'{path!r} is a folder; {_ADVICE}')
  if not file.is_file():
    raise ValueError(f'{path!r} does not exist; {_ADVICE}' if not file.exists() else
                     f'{path!r} is not a regular file; {_ADVICE}')
  return (stored(file) if file.suffix == '.json' else _called(file, variant)).lock()


def stored(path: pathlib.Path) -> ConfigDict:
  """The config that a run has written. Raises ValueError for another file."""
  try:
    found = _tuples(files.read_json(path))
    if not isinstance(found, dict) or not isinstance(found.get('sample'), dict):
      raise ValueError("it has no section 'sample'")
    config = ConfigDict(found)
    config.sample.scale = numbered(config.sample.scale)
  except OSError as error:
    raise ValueError(str(error)) from error
  except (ValueError, TypeError, AttributeError) as error:
    raise ValueError(f'{path} is not the config of a run ({error}); {_ADVICE}') from error
  return config


def numbered(scale: Any) -> FieldReference:
  """A guidance scale that a flag may replace by a tuple, one number for each channel."""
  return FieldReference(scale, field_type=object)


def _parted(given):
  """('file.py', ['variant']) of 'file.py:variant'; a folder may have colons in its name."""
  path, colon, variant = given.rpartition('.py:')
  return (f'{path}.py', [variant]) if colon else (given, [])


def _called(file, variant):
  spec = importlib.util.spec_from_file_location('config', file)
  if spec is None:
    raise ValueError(f'{str(file)!r} is not a Python file; {_ADVICE}')
  module = importlib.util.module_from_spec(spec)
  # Dataclasses look their module up.
  sys.modules[spec.name] = module
  try:
    spec.loader.exec_module(module)
    if not callable(getattr(module, 'get_config', None)):
      raise ValueError(f'the file has no function get_config; {_ADVICE}')
    config = module.get_config(*variant)
  except (Exception, SystemExit) as error:
    raise ValueError(f'{_place(error, file)}: {_said(error)}') from error
  if not isinstance(config, ConfigDict):
    raise ValueError(f'{file}: get_config() returns {type(config).__name__}; return '
                     'eqflow.config.defaults.config(...), as the files of configs/ do')
  return config


def _place(error, file):
  """'file, line 7': the last line of the user's file that ran, or the line that cannot be read."""
  if isinstance(error, SyntaxError) and error.lineno:
    return f'{error.filename}, line {error.lineno}'
  lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
           if frame.filename == str(file)]
  return f'{file}, line {lines[-1]}' if lines else str(file)


def _said(error):
  if isinstance(error, SyntaxError):
    return f'{type(error).__name__}: {error.msg}'
  # The error of a locked config lists all of its keys.
  text = textwrap.shorten(str(error), 300)
  return text if isinstance(error, ValueError) else f'{type(error).__name__}: {text}'


def _tuples(value):
  """JSON's lists as tuples, as configs have them."""
  if isinstance(value, dict):
    return {key: _tuples(each) for key, each in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list) else value
