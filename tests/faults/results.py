"""Results of each case in results/<measurement>.json, so that a measurement can resume."""

import collections
from collections.abc import Callable
import json
import pathlib
from typing import Any

from eqflow import files

FOLDER = pathlib.Path(__file__).parent / 'results'


def read(name: str, folder: pathlib.Path = FOLDER) -> list[dict[str, Any]]:
  """The rows of a measurement, {'what', counts}, in the order in which they were measured."""
  path = folder / f'{name}.json'
  return json.loads(path.read_text()) if path.exists() else []


def resume(name: str, wanted: int, case: Callable, *, counted: str = '',
          folder: pathlib.Path = FOLDER) -> list[dict[str, Any]]:
  """All rows, after running case(i, how many are missing) -> row or rows for those that are missing.

  Counts rows, or the sum of their entries `counted`. Each row is on disk before the next case starts.
  """
  rows = read(name, folder)
  count = lambda: sum(row[counted] for row in rows) if counted else len(rows)
  while count() < wanted:
    made = case(len(rows), wanted - count())
    print(name, made, flush=True)
    rows += made if isinstance(made, list) else [made]
    folder.mkdir(parents=True, exist_ok=True)
    with files.replacing(folder / f'{name}.json') as file:
      file.write(('[' + ',\n '.join(map(json.dumps, rows)) + ']\n').encode())
  return rows


def summed(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
  """{what: {count: sum over its rows}}, of `slowest` the largest."""
  found = {}
  for row in rows:
    total = found.setdefault(row['what'], collections.Counter())
    for key, value in row.items():
      if key == 'slowest':
        total[key] = max(total[key], value)
      elif key != 'what':
        total[key] += value
  return {what: dict(total) for what, total in found.items()}
