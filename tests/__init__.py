"""Tests mirror eqflow/; laws/ crosses its modules, faults/ kills and damages runs."""

import importlib
import pathlib

ROOT = pathlib.Path(__file__).parents[1]


def config_file(name):
  """The module configs/<name>.py."""
  return importlib.import_module(f'configs.{name}')
