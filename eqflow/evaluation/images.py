"""Pictures of samples: grids of images, scatter plots, PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import functools
import importlib.resources
import math
import os
import pathlib

from jaxtyping import Array, Float, Integer, UInt8
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from eqflow import files

_LEAST, _LONG = 48, 512   # pixels of the sides of an image in a grid
_MOST = 2**21             # pixels of all images of a grid
_LINE = 15                # pixels of a line of text
# The colours of Okabe and Ito, which colour-blind readers can distinguish; black first.
_COLOURS = np.array([(0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
                     (0, 114, 178), (213, 94, 0), (204, 121, 167)], np.uint8)


def grid(x: Float[Array | np.ndarray, 'n h w c'], columns: int | None = None, pad: int = 1, *,
         title: str = '', captions: Sequence[str] = (), rows: Sequence[str] = ()) -> UInt8[
             np.ndarray, '_ _ _']:
  """round(127.5 x + 127.5) of images x [n, h, w, c] in [-1, 1], tiled row by row, uint8 HWC.

  The first three channels are colours, and each further channel is a grey picture to the right of them;
  of one or two channels, each is grey. Images are enlarged by the smallest integer that gives their
  shorter side at least 48 pixels; only their width, where the other side would exceed 512. `pad` white
  pixels are around each, at least 4 with captions. Values outside [-1, 1] are clipped. By default the
  grid is square, or has one column more than rows. `captions` has a text for each image, and `rows` one
  for each row of the grid.
  Raises ValueError unless there is an image and all are finite.
  """
  tiles = _tiles(np.asarray(x, np.float32))
  n, height, width, channels = tiles.shape
  columns = columns or math.ceil(math.sqrt(n))
  top, line, pad = _LINE * bool(title), _LINE * bool(captions), max(pad, 4 * bool(captions))
  left = max(map(_length, rows), default=-pad) + pad
  down, right = line + height + pad, width + pad
  size = top + -(-n // columns) * down + pad, max(left + columns * right, _length(title)) + pad
  picture = np.full((*size, channels), 255, np.uint8)
  words = [(pad, 0, title)]
  for i, tile in enumerate(tiles):
    y, x = top + i // columns * down + pad, left + i % columns * right + pad
    picture[y + line:y + line + height, x:x + width] = tile
    words += [(x, y, _fitted(captions[i], width))] if captions else []
  words += [(pad, top + i * down + line + height // 2 - _LINE // 2, row) for i, row in enumerate(rows)]
  return _written(picture, words)


def stacked(rows: Mapping[str, Float[Array | np.ndarray, 'n h w c']], *, columns: int = 10,
            title: str = '', captions: Mapping[str, Sequence[str]] = {}) -> UInt8[np.ndarray, '_ _ _']:
  """A grid with example i of all `rows`, {name: x [n, h, w, c]}, in one column, one below the other.

  `columns` examples are next to each other, and the next ones below. `captions` has [n] texts for
  images of some rows. At most 100 examples are shown, and as many as `fitting` counts. Raises like
  `grid`.
  """
  shape = next(iter(rows.values())).shape
  n = min(shape[0], max(1, fitting(shape[1:], most=100 * len(rows)) // len(rows)))
  columns = max(1, min(columns, n))
  bands, empty = -(-n // columns), -n % columns
  white = np.ones((empty, *shape[1:]), np.float32)
  tiles = [np.concatenate([x[:n], white]).reshape(bands, columns, *shape[1:]) for x in rows.values()]
  texts = [np.reshape([*captions.get(name, [''] * n)[:n], *[''] * empty], (bands, columns))
           for name in rows]
  return grid(np.stack(tiles, 1).reshape(-1, *shape[1:]), columns, title=title, rows=[*rows] * bands,
              captions=np.stack(texts, 1).reshape(-1).tolist() if captions else ())


def fitting(shape: tuple[int, ...], *, most: int = 100) -> int:
  """How many images of this shape a grid should have: at most `most`, and two million pixels."""
  height, width, channels = shape
  return max(1, min(most, _MOST // (height * width * _scale(height, width)**2 * _parts(channels))))


def scatter(x: Float[Array | np.ndarray, 'n 2'],
            label: Integer[Array | np.ndarray, 'n'] | None = None, *, limit: float | None = None,
            size: int = 384, title: str = '', names: Sequence[str] = ()) -> UInt8[np.ndarray, '_ _ 3']:
  """Points x [n, 2] as 3x3 dots on white, over [-limit, limit]^2, the second axis upwards.

  Pass one `limit` to pictures that are compared; by default the farthest point is just inside. The
  colour is label [n] modulo 8; `names` of the labels are written in their colours. Points that are
  outside or not finite are not drawn.
  """
  x = np.asarray(x, np.float64)
  shade = _COLOURS[(np.zeros(len(x), int) if label is None else np.asarray(label)) % len(_COLOURS)]
  finite = np.isfinite(x).all(1)
  limit = limit or 1.05 * np.abs(x[finite]).max(initial=0) or 1.0
  inside = finite & (np.abs(x) < limit).all(1)
  column, row = ((x[inside] * (1, -1) / limit + 1) / 2 * size).astype(int).T
  picture = np.full((size + 2, size + 2, 3), 255, np.uint8)  # one pixel more for dots at the edge
  for i in range(3):
    for j in range(3):
      picture[row + i, column + j] = shade[inside]
  return _with_legend(picture[1:-1, 1:-1], limit, title, names)


def _with_legend(picture, limit, title, names):
  """The picture with a title above it and the names of the colours to the right of it."""
  if title:
    title = f'{title}, both axes from {-limit:.2g} to {limit:.2g}'
  top, size = _LINE * bool(title), len(picture)
  names = [f'\N{BLACK CIRCLE} {name}' for name in names[:size // _LINE]]
  right = max(map(_length, names), default=0)
  framed = np.full((top + size, max(size + right, _length(title)), 3), 255, np.uint8)
  framed[top:, :size] = picture
  colours = [tuple(map(int, _COLOURS[i % len(_COLOURS)])) for i in range(len(names))]
  return _written(framed, [(0, 0, title), *((size, top + i * _LINE, name, colours[i])
                                            for i, name in enumerate(names))])


def _scale(height, width):
  """The integer by which a grid enlarges an image."""
  return max(1, -(-_LEAST // width), min(-(-_LEAST // min(height, width)), _LONG // max(height, width)))


def _parts(channels):
  """How many pictures show an image: one of colours, and one of each grey channel."""
  return channels if channels < 3 else channels - 2


def _tiles(x):
  """uint8 [n, h, w, 1 or 3]: images, enlarged, the parts of each from left to right."""
  if not len(x) or not np.isfinite(x).all():
    raise ValueError(f'images x have shape {x.shape} and {np.sum(~np.isfinite(x))} numbers that are '
                     'not finite: give at least one image, and only finite ones')
  tiles, (height, width, channels) = np.rint(127.5 * np.clip(x, -1, 1) + 127.5), x.shape[1:]
  if channels > 3:
    grey = np.repeat(tiles[..., 3:], 3, axis=-1).reshape(len(x), height, width, channels - 3, 3)
    tiles = np.concatenate([tiles[..., :3], *np.moveaxis(grey, 3, 0)], axis=2)
  elif channels == 2:
    tiles = np.concatenate([tiles[..., :1], tiles[..., 1:]], axis=2)
  scale = _scale(height, width)
  return tiles.astype(np.uint8).repeat(scale, 1).repeat(scale, 2)


@functools.cache
def _font():
  # Of matplotlib, since Pillow's own font has few letters beyond Latin ones.
  folder = importlib.resources.files('matplotlib') / 'mpl-data/fonts/ttf'
  return ImageFont.truetype(str(folder / 'DejaVuSans.ttf'), 11, layout_engine=ImageFont.Layout.BASIC)


def _plain(text):
  """The text in one line of characters that a font may have: a name of a folder may be any bytes."""
  return ' '.join(text.encode(errors='replace').decode().split())


def _length(text):
  """The pixels from the left to the right end of a text."""
  return math.ceil(_font().getlength(_plain(text)))


def _fitted(text, width):
  """text, or its beginning and an ellipsis, so that it is at most `width` pixels long."""
  if _length(text) <= width:
    return text
  # A letter is longer than a pixel.
  return next(text[:i] + '…' for i in range(min(width, len(text)), -1, -1)
              if not i or _length(text[:i] + '…') <= width)


def _written(picture, words):
  """The picture [h, w, 1 or 3] with words (left, top, text, colour or black)."""
  image = _image(picture)
  draw = ImageDraw.Draw(image)
  for left, top, text, *colour in words:
    draw.text((left, top), _plain(text), fill=colour[0] if colour else 0, font=_font())
  return np.asarray(image).reshape(picture.shape)


def _image(picture):
  return Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)


def save_png(path: str | os.PathLike, picture: UInt8[np.ndarray, '_ _ _']) -> None:
  """Writes a picture, uint8 [h, w, 1 or 3], as a PNG file, atomically. Creates its folder."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(path) as file:
    _image(picture).save(file, format='PNG')
