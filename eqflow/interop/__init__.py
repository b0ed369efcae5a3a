"""Conventions and published weights of other projects."""

from __future__ import annotations

from typing import Any

from jaxtyping import PyTree

from eqflow.interop import dit, edm2, files

FAMILIES = {'dit': dit, 'edm2': edm2}


def load(path: files.Path, family: str = 'dit', **options: Any) -> tuple[dit.Apply, PyTree]:
  """(apply, params) of a published safetensors file: `dit.load` or `edm2.load`, with its options.

  Raises ValueError for an unknown family, and the errors of `dit.load` and `edm2.load`.
  """
  files.one_of('family', family, FAMILIES)
  return FAMILIES[family].load(path, **options)


def export(params: PyTree, path: files.Path, family: str = 'dit', **options: Any) -> None:
  """Writes params to a file that `load` reads: `dit.export` or `edm2.export`, with its options.

  Raises ValueError for an unknown family, and the errors of `dit.export` and `edm2.export`.
  """
  files.one_of('family', family, FAMILIES)
  FAMILIES[family].export(params, path, **options)
