"""Changes of a data set between stop and resume: a run must reject other data and say what changed."""

from collections.abc import Callable
import gzip
import os
import pathlib
import re
import shutil
import struct
from unittest import mock

import numpy as np
from PIL import Image
import sklearn.datasets

from eqflow.commands import train
from eqflow.data import digits, pairs, records
from eqflow.runs.run import run_of
from tests import config_file
from tests.faults import configs


def picture(seed: int) -> Image.Image:
  """A picture of 5 x 6 random colours."""
  return Image.fromarray(np.random.RandomState(seed).randint(0, 256, (6, 5, 3), np.uint8))


def paint(root: pathlib.Path) -> None:
  """Two classes, a and b, of three pictures each; next to the folder, other.png."""
  picture(98).save(root.parent / 'other.png', 'BMP')
  for start, name in ((0, 'a'), (10, 'b')):
    (root / name).mkdir(parents=True)
    for i in range(3):
      # Not compressed, so that one byte is one pixel; the suffix does not matter.
      picture(start + i).save(root / name / f'{i}.png', 'BMP')


def exchange(one: pathlib.Path, other: pathlib.Path) -> None:
  """Exchanges the names of two files or folders."""
  between = one.with_name('between')
  os.rename(one, between)
  os.rename(other, one)
  os.rename(between, other)


def flip(path: pathlib.Path, at: int = -1) -> None:
  """Changes one byte, and restores the time of modification."""
  before, content = path.stat(), bytearray(path.read_bytes())
  content[at] ^= 1
  path.write_bytes(content)
  os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _link(root, to):
  (root / 'a/1.png').unlink()
  os.symlink(to, root / 'a/1.png')


def _before_all(root):
  (root / '_').mkdir()
  picture(9).save(root / '_/0.png')


# {change of a folder: (what is done, what is said of it)}
FOLDER = {
    'a renamed file': (lambda root: os.rename(root / 'a/1.png', root / 'a/7.png'),
                       "'a/1.png' is now 'a/7.png'"),
    'a renamed class': (lambda root: os.rename(root / 'b', root / 'd'), "'b/0.png' is now 'd/0.png'"),
    'exchanged classes': (lambda root: exchange(root / 'a', root / 'b'),
                          "'a/0.png' has another content of .*, which 'b/0.png' had"),
    'exchanged files': (lambda root: exchange(root / 'a/0.png', root / 'a/2.png'),
                        "'a/0.png' has another content of .*, which 'a/2.png' had"),
    'another content': (lambda root: picture(99).save(root / 'b/1.png'),
                        "'b/1.png' has another content"),
    'another content, old size and time': (lambda root: flip(root / 'a/1.png'),
                                           "'a/1.png' has another content"),
    'a new file': (lambda root: picture(99).save(root / 'a/3.png'), "'a/3.png' is new"),
    'a new file at the end': (lambda root: picture(99).save(root / 'b/3.png'), "'b/3.png' is new"),
    'a new class before the others': (_before_all, "'_/0.png' is new|num_classes=2 must be 3"),
    'a missing file': (lambda root: (root / 'b/2.png').unlink(), "'b/2.png' is missing"),
    'a damaged file': (lambda root: (root / 'a/1.png').write_bytes(b'\x89PNG'), "'a/1.png' is missing"),
    'a file in another class': (lambda root: os.rename(root / 'a/2.png', root / 'b/9.png'),
                                "'a/2.png' is now 'b/9.png'"),
    'a link to another file': (lambda root: _link(root, '../../other.png'),
                               "'a/1.png' has another content"),
}


def _prepare(root, change=lambda x, target: (x, target)):
  """The digits, changed before they are prepared."""
  shutil.rmtree(root, ignore_errors=True)
  given = sklearn.datasets.load_digits()
  given.images, given.target = change(given.images.copy(), given.target.copy())
  with mock.patch.object(sklearn.datasets, 'load_digits', lambda: given):
    digits.prepare(root)


# The row of load_digits that becomes record 3.
_THIRD, _FOURTH = digits.permutation()[3:5]


def _label(x, target):
  target[_THIRD] = (target[_THIRD] + 1) % 10
  return x, target


def _pixel(x, target):
  x[_THIRD] = 16 - x[_THIRD]
  return x, target


def _order(x, target):
  for a in (x, target):
    a[[_THIRD, _FOURTH]] = a[[_FOURTH, _THIRD]]
  return x, target


DIGITS = {
    'a label': (lambda root: _prepare(root, _label), "'record 3' has the label"),
    'an image': (lambda root: _prepare(root, _pixel), "'record 3' has another content"),
    'the order': (lambda root: _prepare(root, _order),
                  "'record 3' has another content of 64 bytes, which 'record 4' had"),
}
IN_FILES = {name: (make, "'digits-train.array_record-00000-of-00001' has another content")
            for name, (make, _) in DIGITS.items()}


def _idx(path, array):
  head = struct.pack(f'>BBBB{array.ndim}I', 0, 0, 8, array.ndim, *array.shape)
  path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


def _clothes(root, label=range(9), image=0):
  root.mkdir(exist_ok=True)
  x = np.random.RandomState(0).randint(0, 256, (9, 28, 28))
  x[5, 0, 0] = image
  for prefix in ('train', 't10k'):
    _idx(root / f'{prefix}-images-idx3-ubyte.gz', x)
    _idx(root / f'{prefix}-labels-idx1-ubyte.gz', np.array(label))


CLOTHES = {
    'a label': (lambda root: _clothes(root, [0, 1, 2, 3, 4, 5, 6, 7, 9]),
                "'record 8' has the label 9, not 8"),
    'an image': (lambda root: _clothes(root, image=1), "'record 5' has another content"),
}


def _draw(root, seed=0):
  shutil.rmtree(root, ignore_errors=True)
  root.mkdir()
  random = np.random.default_rng(seed)
  made = {'count': 9, 'shape': [2], 'num_classes': 0, 'config': {'data': {
      'name': 'moons', 'split': 'all', 'dir': '', 'shape': [2], 'num_classes': 0, 'flip': False}}}
  x = random.standard_normal((9, 2)).astype(np.float32)
  pairs.write(root, made, lambda first: [(x, x, np.zeros(9, np.int32))])


PAIRS = {
    'other pairs': (lambda root: _draw(root, 1), "'x.npy' has another content"),
    'a number': (lambda root: flip(root / 'eps.npy'), "'eps.npy' has another content"),
    'another model': (lambda root: (root / 'pairs.json').write_text(
        (root / 'pairs.json').read_text().replace('moons', 'rings')),
                      "'pairs.json' has another content"),
}

# {source: (how it is made, config, keys, its changes)}
SOURCES: dict[str, tuple[Callable, str, dict, dict]] = {
    'folder': (paint, 'digits:flow', dict(name='folder', shape=(4, 6, 3), num_classes=2), FOLDER),
    'digits': (_prepare, 'digits:eqm', {}, DIGITS),
    'digits not in memory': (_prepare, 'digits:eqm', {}, IN_FILES),
    'fashion_mnist': (_clothes, 'fashion_mnist:eqm', {}, CLOTHES),
    'pairs': (_draw, 'toy:flow', dict(name='pairs', num_classes=0), PAIRS),
}
CASES = [(source, change) for source, (*_, changes) in SOURCES.items() for change in changes]


def start(source: str, root: pathlib.Path, workdir: pathlib.Path) -> str:
  """Starts or resumes a run on the data in root, until it would compile: '' or why it is rejected."""
  _, name, keys, _ = SOURCES[source]
  config = config_file(name.partition(':')[0]).get_config(name.partition(':')[2])
  with config.unlocked(), config.ignore_type():
    config.data.update(keys | dict(dir=str(root)))
    if source == 'pairs':
      config.loss.coupling.name = 'pairs'
  memory = 0 if 'not in memory' in source else records.MEMORY
  with configs.nothing_compiled(), mock.patch.object(records, 'MEMORY', memory):
    try:
      train.train(run_of(config.lock(), workdir))
    except configs.Accepted:
      return ''
    except ValueError as error:
      return str(error)
  return 'ended'


def change(folder: pathlib.Path, source: str, name: str) -> dict[str, int | str]:
  """{'what', 'cases', 'unequal', 'accepted', 'unnamed'}: one change between two starts of a run.

  unequal: it does not resume on equal data; accepted: it resumes on changed data; unnamed: it does not
  say what has changed.
  """
  root, workdir = folder / 'data', folder / 'run'
  create, *_, changes = SOURCES[source]
  folder.mkdir()
  make, expected = changes[name]
  create(root)
  first = start(source, root, workdir) or start(source, root, workdir)
  make(root)
  said = start(source, root, workdir)
  shutil.rmtree(folder)
  found = dict(unequal=int(first != ''), accepted=int(not said),
               unnamed=int(not re.search(expected, said)))
  if any(found.values()):
    print(source, name, first, said, flush=True)
  return dict(what=source, cases=1, **found)
