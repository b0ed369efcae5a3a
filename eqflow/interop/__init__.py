"""What other projects made, in ours: their conventions and their weights."""

from typing import Any

from eqflow.interop import dit, edm2, files

FAMILIES = {'dit': dit, 'edm2': edm2}


def load(path: files.Path, family: str = 'dit', **options: Any) -> tuple[Any, Any]:
  """(apply, params) of a published safetensors file: `dit.load` or `edm2.load`, with its options.

  Raises ValueError for a family that is none, and what they raise.
  """
  files.one_of('family', family, FAMILIES)
  return FAMILIES[family].load(path, **options)


def export(params: Any, path: files.Path, family: str = 'dit', **options: Any) -> None:
  """Writes params as `load` reads them: `dit.export` or `edm2.export`, with its options.

  Raises ValueError for a family that is none, and what they raise.
  """
  files.one_of('family', family, FAMILIES)
  FAMILIES[family].export(params, path, **options)
