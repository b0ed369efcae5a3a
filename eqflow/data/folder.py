"""A folder of images as a source: no preparation, class folders give the labels.

Every file is decoded once before its first run to find damaged ones: the order of records must not
depend on a file that fails in the middle of a run.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
import pathlib

from absl import logging
import numpy as np
from PIL import Image

from eqflow import files
from eqflow.data import images
from eqflow.data.records import Source

CACHE = '~/.cache/eqflow/folders'


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
  """Records decoded on access: folder/paths[i], cropped to [size, size, channels]."""

  folder: str
  paths: tuple[str, ...]
  label: np.ndarray
  size: int
  channels: int

  def __len__(self):
    return len(self.paths)

  def __getitem__(self, i):
    path = os.path.join(self.folder, self.paths[i])
    try:
      x = images.read(path, channels=self.channels, size=self.size)
    except Exception as error:
      error.add_note(f'while reading {path}, which was readable when the run began')
      raise
    return {'x': x, 'label': int(self.label[i])}


def source(folder: str | os.PathLike, *, size: int, channels: int = 3,
           cache_dir: str | os.PathLike | None = None) -> Source:
  """The images below `folder`, sorted by path, centre-cropped to uint8 [size, size, channels].

  Subfolders are classes, labelled in sorted order (images may lie deeper inside them); images
  directly in the folder are one class 0 and num_classes is 0. Names that begin with a dot are
  skipped. Damaged files are named in a warning and left out, see `Source.damaged`; `cache_dir` has the
  index of intact files
  (default ~/.cache/eqflow/folders).

  Raises FileNotFoundError for a missing folder, ValueError where no image is found, where images
  are next to class folders, or for channels other than 1 and 3.
  """
  if channels not in (1, 3):
    raise ValueError(f'channels={channels}: an image folder is read with 1 or 3 channels')
  root = pathlib.Path(folder).expanduser()
  paths = _list_images(root)
  classes = _classes(root, paths)
  damaged = frozenset(_damaged(root, paths, cache_dir))
  intact = tuple(path for path in paths if path not in damaged)
  if not intact:
    raise ValueError(f'{root}: all {len(paths)} images are damaged (named in the warnings above); '
                     'copy the folder again')
  label = np.array([classes[_top(path)] for path in intact], np.int32)
  records = Files(str(root), intact, label, size, channels)
  return Source(records, (size, size, channels), 0 if '' in classes else len(classes),
                f'folder {root}', tuple(path for path in paths if path in damaged))


@functools.cache
def _suffixes():
  formats = Image.registered_extensions()
  return frozenset(suffix for suffix, format_ in formats.items() if format_ in Image.OPEN)


def _list_images(root):
  if not root.is_dir():
    raise FileNotFoundError(f'image folder {str(root)!r} does not exist: give data_dir a folder of '
                            'images, or of class folders with images in them')
  found = []
  for place, folders, names in os.walk(root, followlinks=True):
    folders[:] = [name for name in folders if not name.startswith('.')]
    found += [os.path.relpath(os.path.join(place, name), root) for name in names
              if not name.startswith('.') and os.path.splitext(name)[1].lower() in _suffixes()]
  if not found:
    raise ValueError(f'no images in {str(root)!r}: expected files such as .png or .jpg in it, or '
                     'in its subfolders, one subfolder a class')
  return sorted(found)


def _top(path):
  return path.split(os.sep)[0] if os.sep in path else ''


def _classes(root, paths):
  names = sorted({_top(path) for path in paths})
  if '' in names and len(names) > 1:
    stray = [path for path in paths if not _top(path)]
    raise ValueError(f'{str(root)!r} has {len(stray)} images ({stray[0]}, ...) next to the class '
                     f'folders {names[1:6]}: move them into a class folder, or elsewhere')
  return {name: label for label, name in enumerate(names)}


def _damaged(root, paths, cache_dir):
  """The paths that cannot be decoded. Files that the index lists as intact are not read again.

  The index lists intact files only: a file that was unreadable for an hour is tried again.
  """
  index = _index_file(root, cache_dir)
  known = _read_index(index)
  stamps = {path: _stamp(root / path) for path in paths}
  new = [path for path in paths if stamps[path] is None or known.get(path) != stamps[path]]
  if not new:
    return []
  logging.info('Decoding %d of the %d images in %s once, to find damaged ones.',
               len(new), len(paths), root)
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    reasons = list(pool.map(lambda path: _reason(root / path), new))
  damaged = {path: reason for path, reason in zip(new, reasons) if reason}
  for path, reason in damaged.items():
    logging.warning('Skipping the damaged image %s: %s', root / path, reason)
  if damaged:
    logging.warning('Skipped %d damaged of %d images in %s.', len(damaged), len(paths), root)
  _write_index(index, {path: stamps[path] for path in paths if path not in damaged})
  return list(damaged)


def _reason(path):
  try:
    images.read(path, channels=3)
  # PIL's decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and others.
  except Exception as error:  # noqa: BLE001
    return f'{type(error).__name__}: {error}'
  return None


def _stamp(path):
  try:
    status = path.stat()
  except OSError:
    return None
  return [status.st_size, status.st_mtime_ns]


def _index_file(root, cache_dir):
  place = str(root.resolve())
  digest = hashlib.sha256(place.encode()).hexdigest()[:16]
  return pathlib.Path(cache_dir or CACHE).expanduser() / f'{root.resolve().name}-{digest}.json'


def _read_index(file):
  try:
    known = json.loads(file.read_text())
  except (OSError, ValueError):
    return {}
  return known if isinstance(known, dict) else {}


def _write_index(file, intact):
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(file, json.dumps(intact))
  except OSError as error:
    logging.warning('Cannot write %s (%s): the next run decodes every image again.',
                    file, error)
