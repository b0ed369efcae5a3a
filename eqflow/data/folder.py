"""A folder of images as a source: no preparation, class folders give the labels.

Every file is decoded once before its first run to find damaged ones: the order of records must not
depend on a file that fails in the middle of a run.
"""

from collections.abc import Sequence
import dataclasses
import functools
import os
import pathlib

from absl import logging
from jaxtyping import Int
import numpy as np
from PIL import Image

from eqflow import files
from eqflow.data import images, index
from eqflow.data.records import Labels, Part, Source

# As many files that are left out are named in the log; data.json of a run names all.
_NAMED = 20


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
  """Records decoded on access: folder/files[i].name, cropped to [height, width, channels]."""

  folder: str
  files: Sequence[Part]
  shape: tuple[int, int, int]

  def __len__(self):
    return len(self.files)

  def __getitem__(self, i):
    path = os.path.join(self.folder, self.files[i].name)
    try:
      x = images.read(path, channels=self.shape[2], size=self.shape[:2])
    except Exception as error:
      error.add_note(f'while reading {files.shown(path)}, which was readable when the run began')
      raise
    return {'x': x, 'label': self.files[i].label}

  def labels(self, rows: Int[np.ndarray, 'b']) -> Labels:
    """The labels of the records numbered `rows`."""
    return np.array([self.files[row].label for row in rows], np.int32)

  def parts(self) -> Sequence[Part]:
    """The files, in the order of the records."""
    return self.files


def source(folder: str | os.PathLike, *, size: tuple[int, int], channels: int = 3,
           cache_dir: str | os.PathLike | None = None) -> Source:
  """The images below `folder`, sorted by path, cropped to uint8 [height, width, channels].

  `size` is (height, width); for the crop and the channels see `images.read`. Subfolders are classes,
  labelled in sorted order (images may lie deeper inside them); images directly in the folder are one
  class 0 and num_classes is 0. Names that begin with a dot are skipped.

  Links are followed, and each file is one record, under its name without links if it has one. Files
  that are damaged, are not regular files or are links to other images here are left out: see
  `Source.left_out`; the first 20 are named in warnings. `cache_dir` has the index of intact files
  (default ~/.cache/eqflow/index).

  Raises FileNotFoundError for a missing folder, and ValueError where no image is found, where images
  are next to class folders, or for channels other than 1 to 4.
  """
  if channels not in images.MODES:
    raise ValueError(f'channels={channels}: an image folder is read with 1 to 4 channels')
  root = pathlib.Path(folder).expanduser()
  paths, links = find(root)
  found, unreadable = index.digests(root, paths, _examined, kind='images', cache_dir=cache_dir)
  left_out = dict(sorted((links | unreadable).items()))
  _report(root, left_out)
  if not found:
    raise ValueError(f'{files.shown(root)}: none of its {len(paths)} images can be read (named in the '
                     'warnings above); copy the folder again')
  classes = classes_of(root, list(found))
  label = {name: i for i, name in enumerate(classes)}
  parts = tuple(Part(path, label[_top(path)], *entry) for path, entry in found.items())
  records = Files(os.fspath(root), parts, (*size, channels))
  return Source(records, records.shape, len(classes) if classes != [''] else 0,
                f'folder {files.shown(root)}', tuple(filter(None, classes)), left_out)


def find(root: pathlib.Path) -> tuple[list[str], dict[str, str]]:
  """(the images below root, sorted by path, {path: why it is left out}). Opens no file.

  Raises FileNotFoundError for a missing folder, and ValueError for one without images.
  """
  if not root.is_dir():
    raise FileNotFoundError(f'image folder {files.shown(root)!r} does not exist: give data_dir a '
                            'folder of images, or of class folders with images in them')
  folders, found, left_out, links = {}, {}, {}, ['']
  # Links come last, so that an image has the name by which it is reached without them, if any.
  while links:
    links = [each for path in sorted(links) for each in _visit(root, path, folders, found, left_out)]
  if not found:
    raise ValueError(f'no images in {files.shown(root)!r}: expected files such as .png or .jpg in it, '
                     'or in its subfolders, one subfolder a class')
  return sorted(found.values()), left_out


def _visit(root, start, folders, found, left_out):
  """Adds what is in or below root/start to `folders` and `found`, {real path: path}; returns links."""
  real = os.path.realpath(os.path.join(root, start))
  links, pending = [], [(start, real, os.path.isdir(real))]
  while pending:
    path, real, is_folder = pending.pop()
    known = folders if is_folder else found
    if not is_folder and not _is_image(path):
      continue
    if known.setdefault(real, path) != path:
      left_out[path] = f'is {files.shown(known[real]) or "the folder"} again'
    elif is_folder:
      try:
        entries = [entry for entry in os.scandir(real) if not entry.name.startswith('.')]
      except OSError as error:
        left_out[path] = f'cannot be listed: {error.strerror}'
        continue
      links += [os.path.join(path, entry.name) for entry in entries if entry.is_symlink()]
      pending += [(os.path.join(path, entry.name), entry.path, entry.is_dir())
                  for entry in entries if not entry.is_symlink()]
  return links


@functools.cache
def _suffixes():
  return frozenset(suffix for suffix, format_ in Image.registered_extensions().items()
                   if format_ in images.FORMATS)


def _is_image(path):
  return os.path.splitext(path)[1].lower() in _suffixes()


def classes_of(root: pathlib.Path, paths: Sequence[str]) -> list[str]:
  """The class folders of images, sorted; [''] for images without. Raises ValueError for both."""
  names = sorted({_top(path) for path in paths})
  if '' in names and len(names) > 1:
    stray = [path for path in paths if not _top(path)]
    raise ValueError(f'{files.shown(root)!r} has {len(stray)} images ({files.shown(stray[0])}, ...) '
                     f'next to the class folders {list(map(files.shown, names[1:6]))}: move them '
                     'into a class folder, or elsewhere')
  return names


def _top(path):
  return path.split(os.sep)[0] if os.sep in path else ''


def _examined(file):
  images.check(file)
  file.seek(0)
  return index.digest(file)


def _report(root, left_out):
  for path, reason in list(left_out.items())[:_NAMED]:
    logging.warning('Left out: %s: %s', files.shown(os.path.join(root, path)), reason)
  if left_out:
    logging.warning('Left out %d files of %s.', len(left_out), files.shown(root))
