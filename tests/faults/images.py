"""Odd images and odd folders: each is used, or left out or rejected by name, in bounded memory."""

from collections.abc import Callable
import io
import os
import pathlib
import re
import shutil
import socket
import struct
import zlib

import numpy as np
from PIL import Image

from eqflow.commands import train
from eqflow.data import folder
from eqflow.runs.run import run_of
from tests import config_file
from tests.faults import configs
from tests.faults.datasets import paint

GREY = 128   # of each image that can be read
SHAPE = 32, 48, 3
# Bytes for Python and numpy, beyond three times the decoded image.
ROOM = 64 * 2**20


def _image(mode='RGB', size=(40, 30), grey=GREY, **options):
  """path -> saves a grey image of a mode and size, in the format of its suffix."""
  def save(path):
    whole = Image.new('L', size, grey)
    if mode in ('I;16', 'I;16B'):
      whole = Image.new(mode, size, 257 * grey)
    elif mode in ('I', 'F'):
      whole = Image.new(mode, size, options.pop('value', grey))
    elif mode == '1':
      whole = Image.fromarray((np.indices(size[::-1]).sum(0) % 2).astype(bool))
    else:
      whole = whole.convert('RGB').convert(mode) if mode in ('CMYK', 'YCbCr', 'LAB', 'HSV') else (
          whole.convert(mode))
    whole.save(path, **options)
  return save


def _turned(orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  return _image(exif=exif)


def _frames(**options):
  first, *rest = (Image.new('RGB', (40, 30), (grey,) * 3) for grey in (GREY, 0, 255))
  return lambda path: first.save(path, save_all=True, append_images=rest, **options)


def _see_through(path):
  image = Image.new('P', (40, 30), 1)
  image.putpalette([0, 0, 0, GREY, GREY, GREY])
  image.save(path, transparency=bytes([0, 90]))


def _chunk(kind, data):
  return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def _png(width, height, depth=8, colour=0, more=b'', data=b''):
  """path -> writes a PNG with any header, and any chunks before its data."""
  head = _chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0))
  return lambda path: path.write_bytes(b'\x89PNG\r\n\x1a\n' + head + more + _chunk(b'IDAT', data)
                                       + _chunk(b'IEND', b''))


def _deep_colours(path):
  row = b'\0' + struct.pack('>3H', *[257 * GREY] * 3) * 40
  _png(40, 30, 16, 2, data=zlib.compress(row * 30))(path)


def _encoded(kind, mode='RGB'):
  noise = np.random.RandomState(0).randint(0, 256, (30, 40, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(noise).convert(mode).save(file, kind)
  return file.getvalue()


def _cut(kind, part=0.5):
  content = _encoded(kind)
  return lambda path: path.write_bytes(content[:int(part * len(content))])


def _flipped(path):
  content = bytearray(_encoded('PNG'))
  content[len(content) // 2] ^= 255
  path.write_bytes(content)


def _bytes(content):
  return lambda path: path.write_bytes(content)


def _socket(path):
  # Short, since the name of a socket has at most 108 bytes.
  with socket.socket(socket.AF_UNIX) as made:
    here = os.open(path.parent, os.O_RDONLY)
    made.bind(f'/proc/self/fd/{here}/{path.name}')
    os.close(here)


_BOMB = _chunk(b'zTXt', b'Comment\0\0' + zlib.compress(bytes(2**28), 9))
_TIFF = b'II*\0\x08\0\0\0\x04\0' + b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in (
    (256, 2**31 - 1), (257, 2**31 - 1), (273, 8), (279, 2**31 - 1))) + bytes(4)

# {name of the file: (how it is written, whether it is read)}
IMAGES: dict[str, tuple[Callable[[pathlib.Path], object], bool]] = {
    **{f'{mode.replace(";", "")}.{kind}': (_image(mode), True) for mode, kind in (
        ('L', 'png'), ('LA', 'png'), ('P', 'png'), ('RGB', 'png'), ('RGBA', 'png'), ('I;16', 'png'),
        ('1', 'png'), ('L', 'jpg'), ('RGB', 'jpeg'), ('CMYK', 'jpg'), ('RGB', 'bmp'), ('P', 'gif'),
        ('RGB', 'tga'), ('RGB', 'ppm'), ('RGB', 'pcx'), ('RGB', 'dds'), ('RGB', 'sgi'), ('RGB', 'jp2'),
        ('RGB', 'ico'), ('RGB', 'webp'), ('L', 'tiff'), ('I;16', 'tiff'), ('I;16B', 'tif'),
        ('CMYK', 'tiff'), ('YCbCr', 'tiff'), ('RGBA', 'tiff'))},
    'I.pgm': (_image('I', value=257 * GREY), True),
    'progressive.jpg': (_image(progressive=True), True),
    'several.tiff': (_frames(), True), 'moving.gif': (_frames(duration=9), True),
    'moving.webp': (_frames(duration=9, lossless=True), True), 'see-through.png': (_see_through, True),
    'colours of 16 bits.png': (_deep_colours, True),
    **{f'turned {turn}.jpg': (_turned(turn), True) for turn in (2, 3, 6, 8)},
    'one pixel.png': (_image('L', (1, 1)), True), 'tall.png': (_image('L', (1, 20_000)), True),
    'wide.png': (_image('RGB', (30_000, 2)), True), 'large.png': (_image('L', (13_000, 13_000)), True),
    'large.jpg': (_image('RGB', (6_000, 5_000)), True),
    'large16.png': (_image('I;16', (6_000, 5_000)), True),
    'a name\nof "two" lines ä.png': (_image(), True),
    'too large.png': (_image('L', (14_000, 14_000)), False),
    'float.tiff': (_image('F'), False), '32 bits.tiff': (_image('I', value=100_000), False),
    'LAB.tiff': (_image('LAB'), False), 'half.png': (_cut('PNG'), False),
    'half.jpg': (_cut('JPEG'), False), 'half.gif': (_cut('GIF'), False),
    'half.webp': (_cut('WEBP'), False),
    'half.tiff': (_cut('TIFF'), False), 'head.png': (_cut('PNG', 0.02), False),
    'a bit.png': (_flipped, False), 'empty.png': (_bytes(b''), False),
    'text.jpg': (_bytes(b'<html>'), False), 'zeros.bmp': (_bytes(bytes(999)), False),
    'script.png': (_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n'), False),
    'huge head.png': (_png(2**31 - 1, 2**31 - 1), False), 'no data.png': (_png(40, 30), False),
    'zero wide.png': (_png(0, 30), False), 'text bomb.png': (_png(40, 30, more=_BOMB), False),
    'huge head.tiff': (_bytes(_TIFF), False), 'fifo.png': (os.mkfifo, False),
    'socket.png': (_socket, False),
    'dangling.png': (lambda path: os.symlink('nowhere', path), False),
    'loop.png': (lambda path: os.symlink(path.name, path), False),
    'device.png': (lambda path: os.symlink('/dev/zero', path), False),
    'again.png': (lambda path: os.symlink('0.png', path), False),
}


def peak_memory():
  """The largest resident memory since the last call, in bytes, above the present one."""
  status = pathlib.Path('/proc/self/status').read_text()
  high, now = (1024 * int(re.search(rf'{name}:\s+(\d+)', status)[1]) for name in ('VmHWM', 'VmRSS'))
  pathlib.Path('/proc/self/clear_refs').write_text('5')
  return high - now


def read(place: pathlib.Path, name: str) -> dict[str, int | str]:
  """{'what', 'cases', 'tracebacks', 'unnamed', 'over', 'wrong'}: one odd image next to a plain one.

  unnamed: neither read nor left out with a reason, or the other of the two than it should be; over: the
  peak of memory exceeds three times the decoded image; wrong: an image that is not the grey it is.
  """
  root = place / 'images'
  root.mkdir()
  _image()(root / '0.png')
  make, readable = IMAGES[name]
  make(root / name)
  found = dict(tracebacks=0, unnamed=0, over=0, wrong=0)
  peak_memory()
  try:
    source = folder.source(root, size=SHAPE[:2], cache_dir=place / 'index')
    records = {part.name: source[i]['x'] for i, part in enumerate(source.records.parts())}
    peak = peak_memory()
    found['unnamed'] = int((name in records) != readable or readable == bool(source.left_out.get(name)))
    if name in records:
      found['wrong'] = int(abs(records[name].mean() - GREY) > 3)
      with Image.open(root / name) as image:
        found['over'] = int(peak > 3 * image.width * image.height * len(image.getbands()) + ROOM)
  except Exception as error:
    found['tracebacks'] = 1
    print(f'{type(error).__name__}: {error}')
  if any(found.values()):
    print(repr(name), found, flush=True)
  shutil.rmtree(place)
  return dict(what='images, read' if readable else 'images, left out by name', cases=1, **found)


def _classes(root):
  paint(root)


def _self(root):
  paint(root)
  os.symlink('.', root / 'a/self')
  os.symlink('..', root / 'b/up')


def _many(count):
  def make(root):
    root.mkdir()
    for i in range(count):
      _image()(root / f'{i}.png')
  return make


def _stray(root):
  paint(root)
  _image()(root / 'stray.png')


def _damaged_class(root):
  paint(root)
  (root / 'c').mkdir()
  _bytes(b'')(root / 'c/0.png')


def _deep(root):
  paint(root)
  place = root / '/'.join(['a'] * 40)
  place.mkdir(parents=True)
  _image()(place / '0.png')


def _linked(root):
  paint(root.with_name('elsewhere'))
  root.mkdir()
  os.symlink('../elsewhere/a', root / 'x')
  os.symlink('../elsewhere/b', root / 'y')


def _all_damaged(root):
  root.mkdir()
  _bytes(b'no')(root / '0.png')


def _odd_names(root):
  for name in ('a b', 'ä字', 'a"b', os.fsdecode(b'\xff')):
    (root / name).mkdir(parents=True)
    _image()(root / name / '0.png')


# {folder: (how it is made, the number of its classes, what the rejection names)}
FOLDERS: dict[str, tuple[Callable[[pathlib.Path], object], int, str]] = {
    'two classes': (_classes, 2, ''), 'links to itself': (_self, 2, ''), 'one image': (_many(1), 0, ''),
    'seven images': (_many(7), 0, ''), 'deep folders': (_deep, 2, ''), 'only links': (_linked, 2, ''),
    'odd names': (_odd_names, 4, ''), 'a class that is damaged': (_damaged_class, 2, ''),
    'images next to classes': (_stray, 2, 'stray.png'),
    'no images': (lambda root: root.mkdir(), 0, 'no images'),
    'all damaged': (_all_damaged, 0, 'none of its 1 images'),
    'missing': (lambda root: None, 0, 'does not exist'), 'a file': (_bytes(b''), 0, 'does not exist'),
    'a FIFO': (os.mkfifo, 0, 'does not exist'),
}


def train_on(place: pathlib.Path, name: str) -> dict[str, int | str]:
  """{'what', 'cases', 'tracebacks', 'unnamed'}: one odd folder, until the run would compile."""
  make, classes, expected = FOLDERS[name]
  place.mkdir(exist_ok=True)
  make(place / 'images')
  config = config_file('folder').get_config()
  config.update(dict(data=dict(dir=str(place / 'images'), shape=SHAPE, num_classes=classes)))
  said, found = '', dict(tracebacks=0, unnamed=0)
  with configs.nothing_compiled():
    try:
      train.train(run_of(config.lock(), place / 'run'))
    except configs.Accepted:
      pass
    except (ValueError, OSError) as error:
      said = str(error)
    except Exception as error:
      found['tracebacks'], said = 1, f'{type(error).__name__}: {error}'
  found['unnamed'] = int(bool(expected) != bool(said) or expected not in said)
  if any(found.values()):
    print(name, found, said, flush=True)
  shutil.rmtree(place)
  return dict(what='folders', cases=1, **found)


CASES = [(read, name) for name in IMAGES] + [(train_on, name) for name in FOLDERS]


def case(place: pathlib.Path, i: int) -> dict[str, int | str]:
  """The i-th odd image or folder."""
  place.mkdir()
  run, name = CASES[i]
  return run(place, name)
