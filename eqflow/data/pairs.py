"""Pairs (eps, x) of a model's noise and sample, as a data set: three .npy files and their record.

A folder has x.npy and eps.npy, float32 [n, ...], label.npy, int32 [n], and pairs.json: the number of
pairs requested and written, and the config, step and seed of the model that they come from.
"""

from collections.abc import Callable
import dataclasses
import functools
import io
import json
import os
import pathlib
from typing import Any

from jaxtyping import Int
import numpy as np

from eqflow import files
from eqflow.data import index
from eqflow.data.records import Batch, Labels, Part, Source

_COMMAND = ('python -m eqflow.main --config=CONFIG --workdir=RUN --mode=pairs --num_samples=N '
            '--out=FOLDER')


@dataclasses.dataclass(frozen=True, eq=False)
class Paired:
  """The pairs in a folder, read from its files on access; `made` is its record."""

  folder: str
  made: str

  def __len__(self):
    return len(self._arrays['label'])

  def __getitem__(self, i):
    x, eps, label = (self._arrays[key][i] for key in ('x', 'eps', 'label'))
    return {'x': np.array(x), 'eps': np.array(eps), 'label': int(label)}

  def gather(self, rows: Int[np.ndarray, 'b']) -> Batch:
    """The pairs numbered `rows`, as fresh arrays."""
    return {key: np.array(a[rows]) for key, a in self._arrays.items()}

  def labels(self, rows: Int[np.ndarray, 'b']) -> Labels:
    """The labels of the pairs numbered `rows`."""
    return self._arrays['label'][rows]

  def parts(self) -> list[Part]:
    """The files of the pairs. Raises ValueError if they contain NaN or infinity."""
    return index.parts(self.folder, [f'{key}.npy' for key in _DTYPES], _finite) + [
        Part('pairs.json', -1, len(self.made), index.digest(io.BytesIO(self.made.encode())))]

  @functools.cached_property
  def _arrays(self):
    return _open(pathlib.Path(self.folder), 'r')

  def __reduce__(self):
    # Another process opens the files itself: pickling a memory map would copy all of its data.
    return Paired, (self.folder, self.made)


def source(folder: str | os.PathLike | None) -> Source:
  """The pairs in `folder`: records {'x', 'eps', 'label'} with the classes of the model.

  Raises FileNotFoundError for a folder without pairs, and ValueError if pairs are missing or a file
  is damaged.
  """
  made = record(folder)
  root = pathlib.Path(folder).expanduser()
  if made['written'] < made['count']:
    raise ValueError(f'{root} has {made["written"]:,} of {made["count"]:,} pairs: run the command '
                     'that drew them again, and it continues')
  pairs = Paired(os.fspath(root), json.dumps(made, sort_keys=True))
  shape = tuple(made['shape'])
  try:
    whole = {key: a.shape for key, a in pairs._arrays.items()}
  except (OSError, ValueError, OverflowError) as error:
    raise ValueError(f'the pairs in {root} are not readable ({error}): draw them again') from error
  wanted = {key: (made['count'], *size) for key, size in _sizes(shape).items()}
  if whole != wanted:
    raise ValueError(f'the pairs in {root} have the shapes {whole}, not {wanted}: draw them again')
  return Source(pairs, shape, made['num_classes'], 'pairs', tuple(made.get('classes', ())))


def record(folder: str | os.PathLike | None) -> dict[str, Any]:
  """The contents of pairs.json: count, written, shape, num_classes; config, step, seed of the model.

  Raises FileNotFoundError if the folder has no pairs.
  """
  path = pathlib.Path(folder or '').expanduser() / 'pairs.json'
  if folder is None or not path.exists():
    raise FileNotFoundError(f'no pairs in {folder!s:.200}: draw them from a trained model with\n'
                            f'  {_COMMAND}')
  made = files.read_json(path)
  if not isinstance(made, dict) or not made.keys() >= {'count', 'written', 'shape', 'num_classes'}:
    raise ValueError(f'{path} does not describe pairs: draw them again')
  return made


def write(folder: pathlib.Path, made: dict[str, Any], blocks: Callable) -> None:
  """Fills `folder` with the pairs of `made`: blocks(first) yields (eps, x, label) from pair `first`.

  `made` has count, shape, num_classes, and a description of the model. pairs.json counts a block after
  its bytes are written, so that an interrupted command continues after the last block. Raises
  ValueError if the folder has pairs with another description.
  """
  path, done = folder / 'pairs.json', 0
  made = json.loads(json.dumps(made))
  if path.exists():
    theirs = record(folder)
    done = theirs.pop('written')
    ours, theirs = _flat(made), _flat(theirs)
    differ = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
    if differ:
      changes = ', '.join(f'{key}: {theirs.get(key)!r} there, {ours.get(key)!r} requested'
                          for key in differ)
      raise ValueError(f'{folder} has other pairs ({changes}): give another folder')
  else:
    for key, size in _sizes(tuple(made['shape'])).items():
      np.lib.format.open_memmap(folder / f'{key}.npy', mode='w+', dtype=_DTYPES[key],
                                shape=(made['count'], *size)).flush()
    _write_record(path, made | {'written': 0})
  arrays = _open(folder, 'r+')
  for eps, x, label in blocks(done) if done < made['count'] else ():
    rows = slice(done, done + len(x))
    for key, values in (('x', x), ('eps', eps), ('label', label)):
      arrays[key][rows] = values
      arrays[key].flush()
    done += len(x)
    _write_record(path, made | {'written': done})


_DTYPES = {'x': np.float32, 'eps': np.float32, 'label': np.int32}


def _sizes(shape):
  return {'x': shape, 'eps': shape, 'label': ()}


def _open(folder, mode):
  """The arrays of the files, mapped, not read. Raises ValueError for files of another kind or dtype."""
  arrays = {}
  for key, dtype in _DTYPES.items():
    path = folder / f'{key}.npy'
    files.opened(path).close()
    arrays[key] = np.lib.format.open_memmap(path, mode=mode)
    if arrays[key].dtype != dtype:
      raise ValueError(f'{path} has numbers of {arrays[key].dtype}, not {np.dtype(dtype)}')
  return arrays


def _finite(file):
  """The digest of a .npy file. Its numbers are read and must be finite."""
  numbers = np.lib.format.open_memmap(file.name, mode='r').reshape(-1)
  for start in range(0, len(numbers), 2**24):
    if not np.isfinite(numbers[start:start + 2**24]).all():
      raise ValueError('it contains NaN or infinity; draw the pairs again')
  return index.digest(file)


def _flat(made):
  import jax
  found, _ = jax.tree_util.tree_flatten_with_path(made, is_leaf=lambda a: not isinstance(a, dict))
  return {jax.tree_util.keystr(path, simple=True, separator='.'): a for path, a in found}


def _write_record(path, made):
  with files.replacing(path) as file:
    file.write(json.dumps(made, indent=2).encode() + b'\n')
