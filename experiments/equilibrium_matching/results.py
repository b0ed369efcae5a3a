"""Stored numbers: results/<data>/<measurement>/<row>_<seed>.json."""

import json
import pathlib
from typing import Any

from eqflow import files

FOLDER = pathlib.Path(__file__).parent / 'results'


def path(data: str, measurement: str, row: str, seed: int) -> pathlib.Path:
  """The file with the numbers of one measurement of one training."""
  return FOLDER / data / measurement / f'{row}_{seed}.json'


def write(target: pathlib.Path, found: dict[str, Any]) -> None:
  """Writes `found` as JSON with floats of five digits, atomically."""
  target.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(target) as file:
    file.write(json.dumps(_short(found), indent=1).encode() + b'\n')


def read(data: str, measurement: str, row: str) -> list[dict[str, Any]]:
  """The stored numbers of a row: one entry for each seed of training, in the order of the seeds."""
  found = sorted((FOLDER / data / measurement).glob(f'{row}_?.json'))
  return [json.loads(file.read_text()) for file in found]


def _short(value):
  if isinstance(value, dict):
    return {str(key): _short(each) for key, each in value.items()}
  if isinstance(value, (list, tuple)):
    return [_short(each) for each in value]
  if hasattr(value, 'tolist'):
    return _short(value.tolist())
  return float(f'{value:.5g}') if isinstance(value, float) else value
