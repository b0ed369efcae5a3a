"""One folder a claim: its question, its command, its numbers."""

import importlib.util
import pathlib

ROOT = pathlib.Path(__file__).parents[1]


def config_file(name):
  """The module configs/<name>.py, which is in no package."""
  spec = importlib.util.spec_from_file_location(name, ROOT / f'configs/{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module
