"""The SHA-256 of every file of a folder: written when it is complete, compared before it is read."""

import hashlib
import json
import os
import pathlib

from eqflow import files

NAME = 'manifest.json'


def write(folder: pathlib.Path) -> None:
  """Writes folder/manifest.json, {file: SHA-256}; returns when every file and folder is on disk."""
  found = {name: _digest(folder / name) for name in _files(folder)}
  for name in found:
    files.sync(folder / name)
  for path, _, _ in os.walk(folder, topdown=False):
    files.sync(path)
  with files.replacing(folder / NAME) as file:
    file.write(_text(found).encode())


def damages(folder: pathlib.Path) -> list[str]:
  """One line for each file that is missing, added or changed; [] for an undamaged folder."""
  path = folder / NAME
  try:
    text = files.read(path, most=2**26).decode()
    expected = dict(json.loads(text))
  except (OSError, ValueError, TypeError, RecursionError) as error:
    return [f'{NAME} cannot be read ({error})']
  if not expected or text != _text(expected):
    return [f'{NAME} has changed']
  found = _files(folder)
  bad = [f'{name} is missing' for name in expected if name not in found]
  # Network file systems and file managers add hidden files of their own.
  bad += [f'{name} does not belong there' for name in found
          if name not in expected and not pathlib.PurePath(name).name.startswith('.')]
  for name in found:
    try:
      if name in expected and _digest(folder / name) != expected[name]:
        bad.append(f'{name} has changed')
    except OSError as error:
      bad.append(f'{name} cannot be read ({error})')
  return bad


def _text(found):
  return json.dumps(found, indent=1) + '\n'


def _files(folder):
  return sorted(str(path.relative_to(folder)) for path in folder.rglob('*')
                if path.is_file() and path.name not in (NAME, f'{NAME}.partial'))


def _digest(path):
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
