"""Diffusion, flow matching and Equilibrium Matching in JAX, as vectors in one plane."""

import importlib
import pkgutil

__version__ = '0.1.0'


def __getattr__(name):
  # `import eqflow; eqflow.samplers` imports the submodule when it is first used (PEP 562).
  try:
    return importlib.import_module(f'eqflow.{name}')
  except ModuleNotFoundError as error:
    if error.name != f'eqflow.{name}':
      raise
    raise AttributeError(f"module 'eqflow' has no attribute {name!r}") from None


def __dir__():
  return sorted([*globals(), *(module.name for module in pkgutil.iter_modules(__path__))])
