"""Snapshots of the power EMAs in workdir/snapshots, and the EMAs reconstructed from them after the run.

One safetensors file a snapshot, `{examples:012d}.safetensors`, has the tree of every std as
'std/path/of/leaf', and in its header the time, the stds and the run. `index.json` has the SHA-256 and
size of each file. Nothing here deletes a snapshot. The files are written by hand, one leaf at a time,
since the safetensors library needs the whole tree in memory.
"""

from collections.abc import Iterator, Mapping
import hashlib
import json
import pathlib
import re
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jax.experimental import multihost_utils
from jaxtyping import PyTree
import numpy as np
from safetensors import safe_open

from eqflow import ema, files, posthoc_ema
from eqflow.models import embed

INDEX = 'index.json'
DTYPES = ('float32', 'bfloat16')
_time = lambda name: int(name.split('.')[0])


class Snapshot(NamedTuple):
  """One file: its time in examples, the names of its stds, and its run."""
  path: pathlib.Path
  examples: int
  stds: tuple[str, ...]
  run: str


class Plan(NamedTuple):
  """sum_i coefficients[i] average_i for each target std, and the expected error of each sum."""
  terms: list[tuple[pathlib.Path, str]]   # (file, std by name), rising in time
  coefficients: np.ndarray                # float64 [terms, targets]
  errors: dict[float, float]              # {target std: relative L2 distance of its profile}
  examples: int                           # the time of the targets


def write(folder: pathlib.Path, examples: Any, averages: Mapping[str, PyTree], *, run: str,
          dtype: str = 'float32') -> pathlib.Path:
  """folder/{examples:012d}.safetensors <- {std by name: tree}, one leaf on the host at a time.

  Trainable floats are stored in `dtype`, other leaves in their own. Every process calls this; the first
  one writes. A file of the same time is replaced, as when a resumed run writes it again. Raises
  ValueError unless dtype is float32 or bfloat16, examples > 0, and every name is a std.
  """
  if dtype not in DTYPES:
    raise ValueError(f'dtype={dtype!r}: choose from {DTYPES}')
  if int(examples) < 1:
    raise ValueError(f'examples={examples}: give the number of examples seen, above 0')
  try:
    ema.power_from_std([float(name) for name in averages])
  except ValueError as error:
    raise ValueError(f'averages={sorted(averages)}: name each power EMA by its std, such as "0.05" '
                     f'({error})') from error
  leaves = dict(sorted((f'{std}/{name}', (leaf, _stored(leaf, path, dtype)))
                       for std, tree in averages.items() for name, path, leaf in _named(tree)))
  head = _head(leaves, {'examples': str(int(examples)), 'stds': json.dumps(sorted(averages, key=float)),
                        'run': run})
  blocks = (_bytes(leaf, kind) for leaf, kind in leaves.values())
  path = pathlib.Path(folder) / f'{int(examples):012d}.safetensors'
  if jax.process_index():
    # Gathering a leaf that is sharded over processes needs all of them.
    for _ in blocks:
      pass
    return path
  path.parent.mkdir(parents=True, exist_ok=True)
  digest = hashlib.sha256(head)
  with files.replacing(path) as file:
    file.write(head)
    for block in blocks:
      digest.update(block)
      file.write(block)
    size = file.tell()
  index = _index(path.parent) | {path.name: {'sha256': digest.hexdigest(), 'bytes': size}}
  with files.replacing(path.parent / INDEX) as file:
    file.write(json.dumps(dict(sorted(index.items())), indent=1).encode())
  return path


def _named(tree):
  """[(path as text, key path, leaf)]."""
  return [(jax.tree_util.keystr(path, simple=True, separator='/'), path, leaf)
          for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _stored(leaf, path, dtype):
  """The dtype a leaf is stored in; fixed tables, such as frequencies, are not rounded."""
  lossy = jnp.issubdtype(leaf.dtype, jnp.floating) and not embed.is_fixed(path)
  return jnp.dtype(dtype if lossy else leaf.dtype)


def _head(leaves, metadata):
  """The header of a safetensors file: its length in 8 bytes, then JSON padded to a multiple of 8."""
  entries, end = {'__metadata__': metadata}, 0
  for name, (leaf, dtype) in leaves.items():
    start, end = end, end + leaf.size * dtype.itemsize
    entries[name] = {'dtype': _kind(dtype), 'shape': list(leaf.shape),
                     'data_offsets': [start, end]}
  text = json.dumps(entries, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  return len(text).to_bytes(8, 'little') + text


def _kind(dtype):
  """The name of a dtype in safetensors: F32, BF16, U8, BOOL."""
  return re.sub('(uint|int|float|complex)', lambda m: m[0][0], dtype.name).upper()


def _bytes(leaf, dtype):
  """The bytes of a leaf in row-major order, gathered from all processes."""
  if getattr(leaf, 'is_fully_addressable', True):
    leaf = jax.device_get(leaf)
  else:
    leaf = multihost_utils.process_allgather(leaf, tiled=True)
  return np.ascontiguousarray(leaf, dtype).reshape(-1).view(np.uint8).data


def _index(folder):
  """{file: {'sha256', 'bytes'}} of all snapshots; {} before the first."""
  path = folder / INDEX
  if not path.exists():
    return {}
  try:
    return {name: {'sha256': str(entry['sha256']), 'bytes': int(entry['bytes'])}
            for name, entry in files.read_json(path, most=2**26).items()}
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f'{path} cannot be read ({error}): restore it from a copy, or move the folder '
                     'away and train again') from error


def listed(folder: pathlib.Path) -> list[int]:
  """The times, in examples, of the snapshots in the index, in ascending order."""
  return sorted(map(_time, _index(pathlib.Path(folder))))


def check(folder: pathlib.Path, *, like: PyTree, run: str | None = None, until: int | None = None,
          skip_damaged: bool = False) -> list[Snapshot]:
  """The undamaged snapshots up to `until` examples, in ascending order, every file read and compared.

  Raises ValueError that names all that are missing, not in the index, damaged, of another `run` (if
  given), or of a network with other leaves than `like`. With skip_damaged the first three kinds are
  skipped, unless no snapshot remains.
  """
  folder = pathlib.Path(folder)
  whole, lost, foreign = [], [], []
  index = _index(folder)
  for name in sorted({*index, *(path.name for path in folder.glob('*.safetensors'))}):
    # A file of another program may have any name.
    if until is not None and name.split('.')[0].isdecimal() and _time(name) > until:
      continue
    if name not in index:
      lost.append(f'{name} is not in {INDEX}: an interrupted run writes it again when it resumes')
      continue
    try:
      snapshot, shapes = _opened(folder / name, index[name])
    except ValueError as reason:
      lost.append(f'{name} {reason}')
      continue
    if run is not None and snapshot.run != run:
      foreign.append(f'{name} is of run {snapshot.run!r}, not {run!r}')
    elif difference := _difference(shapes, snapshot.stds, like):
      foreign.append(f'{name} is of another architecture: {difference}')
    whole.append(snapshot)
  if foreign or lost and not skip_damaged:
    remedy = ((['give the folder and the config of the same run'] if foreign else []) +
              (['restore missing and damaged files from a copy, or give skip_damaged=True to '
                'continue without them, at a larger expected error'] if lost else []))
    raise ValueError(f'snapshots in {folder}: {"; ".join(lost + foreign)}. To continue, '
                     f'{", and ".join(remedy)}')
  if not whole and lost:
    raise ValueError(f'no undamaged snapshots in {folder}: {"; ".join(lost)}. Restore them from a copy')
  if not whole:
    raise ValueError(
        f'no snapshot at or before {until} examples in {folder}: the first is at '
        f'{min(map(_time, index))}; choose a later target' if index else
        f'no snapshots in {folder}: give the folder of a run that has written some')
  return whole


def _opened(path, entry):
  """(Snapshot, {leaf: shape}) of a file. Raises ValueError if it is missing or damaged."""
  if not path.exists():
    raise ValueError('is missing')
  if path.stat().st_size != entry['bytes']:
    raise ValueError(f'is damaged: {path.stat().st_size} bytes instead of {entry["bytes"]}')
  try:
    with open(path, 'rb') as file:
      if hashlib.file_digest(file, 'sha256').hexdigest() != entry['sha256']:
        raise ValueError('is damaged: its sha256 is not the one in the index')
    with safe_open(path, 'numpy') as file:
      head = file.metadata()
      shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    return Snapshot(path, int(head['examples']), tuple(json.loads(head['stds'])), head['run']), shapes
  except OSError as error:
    raise ValueError(f'is damaged: {error}') from error


def _difference(shapes, stds, like):
  """The first leaf in which a file differs from {std: like}, or ''."""
  here = {f'{std}/{name}': tuple(leaf.shape) for std in stds for name, _, leaf in _named(like)}
  for name in sorted(shapes.keys() | here.keys()):
    if shapes.get(name) != here.get(name):
      there, mine = (str(list(table[name])) if name in table else 'absent' for table in (shapes, here))
      return f'{name} is {there} in the file, {mine} in the network'
  return ''


def read(path: pathlib.Path, std: str, like: PyTree) -> PyTree:
  """One EMA of one snapshot, as numpy arrays in the dtypes of the file, structured like `like`."""
  with safe_open(path, 'numpy') as file:
    return jax.tree.structure(like).unflatten(
        [file.get_tensor(f'{std}/{name}') for name, _, _ in _named(like)])


def plan(folder: pathlib.Path, out_examples: int | None, out_stds: Any, *, like: PyTree,
         run: str | None = None, skip_damaged: bool = False) -> Plan:
  """Which snapshots to sum, with which coefficients, for EMAs of out_stds at out_examples.

  out_examples None: at the last snapshot. Raises ValueError as `check` and `posthoc_ema.solve` do.
  """
  snapshots = check(folder, like=like, run=run, until=out_examples, skip_damaged=skip_damaged)
  out_stds = list(dict.fromkeys(np.atleast_1d(np.asarray(out_stds, np.float64)).tolist()))
  if out_examples is None:
    out_examples = snapshots[-1].examples
  terms = [(snapshot, std) for snapshot in snapshots for std in snapshot.stds]
  given = ([snapshot.examples for snapshot, _ in terms], [float(std) for _, std in terms])
  x = posthoc_ema.solve(*given, out_examples, out_stds)
  errors = posthoc_ema.expected_error(x, *given, out_examples, out_stds)
  return Plan([(snapshot.path, std) for snapshot, std in terms], x,
              dict(zip(out_stds, errors.tolist())), int(out_examples))


def reconstruct(made: Plan, like: PyTree, *, sharding: Any = None) -> dict[float, PyTree]:
  """{std: tree} in one pass over the files, reading one EMA at a time.

  Trees have the dtypes of `like`; they are numpy arrays, or sharded by `sharding`, one for all leaves
  or a tree of them. The host needs memory for one tree for each std and one more.
  """
  trees = (read(path, std, like) for path, std in made.terms)
  sums = posthoc_ema.reconstruct(trees, made.coefficients, averaged=embed.trainable(like))
  return {std: placed(sums.pop(0), like, sharding) for std in made.errors}


def leaf_by_leaf(made: Plan, like: PyTree, *,
                 sharding: Any = None) -> Iterator[tuple[str, dict[float, Any]]]:
  """(path of the leaf, {std: leaf}) for each leaf of `like`: for models larger than host memory.

  Opens each file once for each leaf.
  """
  if sharding is not None and not isinstance(sharding, jax.sharding.Sharding):
    places = jax.tree.structure(like).flatten_up_to(sharding)
  else:
    places = [sharding] * len(jax.tree.leaves(like))
  for (name, path, leaf), place in zip(_named(like), places):
    sums = posthoc_ema.reconstruct(
        _terms(made, name), made.coefficients, averaged=not embed.is_fixed(path))
    yield name, {std: placed(sums.pop(0), leaf, place) for std in made.errors}


def _terms(made, name):
  """The leaf `name` of each term of the sum, read lazily."""
  for path, std in made.terms:
    with safe_open(path, 'numpy') as file:
      yield file.get_tensor(f'{std}/{name}')


def placed(tree: PyTree, like: PyTree, sharding: Any = None) -> PyTree:
  """A numpy tree in the dtypes of `like`, sharded by `sharding`: one, a tree of them, or None."""
  tree = jax.tree.map(lambda a, b: a.astype(b.dtype, copy=False), tree, like)
  if sharding is None:
    return tree
  if isinstance(sharding, jax.sharding.Sharding):
    sharding = jax.tree.map(lambda _: sharding, tree)
  # Each process gives its own shards.
  return jax.tree.map(lambda a, place: jax.make_array_from_callback(a.shape, place, lambda i: a[i]),
                      tree, sharding)
