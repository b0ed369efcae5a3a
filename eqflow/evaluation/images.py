"""Pictures of samples: grids of images, scatter plots, PNG files."""

import math
import os
import pathlib

from jaxtyping import Array, Float, Integer, UInt8
import numpy as np
from PIL import Image

from eqflow import files

_TILE = 32
# The colours of Okabe and Ito, which colour-blind readers can distinguish; black first.
_COLOURS = np.array([(0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
                     (0, 114, 178), (213, 94, 0), (204, 121, 167)], np.uint8)


def grid(x: Float[Array | np.ndarray, 'n h w c'], columns: int | None = None,
         pad: int = 1) -> UInt8[np.ndarray, '_ _ c']:
  """round(127.5 x + 127.5) of images x [n, h, w, c] in [-1, 1], tiled row by row, uint8 HWC.

  Tiles are enlarged by the smallest integer that gives their longer side at least 32 pixels, with
  `pad` white pixels around each. Values outside [-1, 1] are clipped. By default the grid is square,
  or has one column more than rows. Raises ValueError unless x is finite and c is 1 or 3.
  """
  x = np.asarray(x, np.float32)
  n, height, width, channels = x.shape
  if not n or channels not in (1, 3) or not np.isfinite(x).all():
    raise ValueError(f'images x have shape {x.shape} and {np.sum(~np.isfinite(x))} numbers that are '
                     'not finite: give at least one finite image with 1 or 3 channels')
  columns = columns or math.ceil(math.sqrt(n))
  scale = math.ceil(_TILE / max(height, width))
  tiles = np.rint(127.5 * np.clip(x, -1, 1) + 127.5).astype(np.uint8)
  tiles = tiles.repeat(scale, 1).repeat(scale, 2)
  down, right = tiles.shape[1] + pad, tiles.shape[2] + pad
  picture = np.full((-(-n // columns) * down + pad, columns * right + pad, channels), 255, np.uint8)
  for i, tile in enumerate(tiles):
    top, left = i // columns * down + pad, i % columns * right + pad
    picture[top:top + tile.shape[0], left:left + tile.shape[1]] = tile
  return picture


def stacked(*rows: Float[Array | np.ndarray, 'n h w c'], columns: int = 10) -> UInt8[
    np.ndarray, '_ _ c']:
  """A grid with example i of all `rows` [n, h, w, c] in one column, one below the other.

  `columns` examples are next to each other, and the next ones below. Raises like `grid`.
  """
  rows, n = [np.asarray(x, np.float32) for x in rows], len(rows[0])
  columns = max(1, min(columns, n))
  white = np.ones((-n % columns, *rows[0].shape[1:]), np.float32)
  bands = [np.concatenate([x, white]).reshape(-1, columns, *x.shape[1:]) for x in rows]
  return grid(np.stack(bands, 1).reshape(-1, *rows[0].shape[1:]), columns)


def scatter(x: Float[Array | np.ndarray, 'n 2'],
            label: Integer[Array | np.ndarray, 'n'] | None = None, *, limit: float | None = None,
            size: int = 384) -> UInt8[np.ndarray, '{size} {size} 3']:
  """Points x [n, 2] as 3x3 dots on white, over [-limit, limit]^2, the second axis upwards.

  Pass one `limit` to pictures that are compared; by default the farthest point is just inside. The
  colour is label [n] modulo 8. Points that are outside or not finite are not drawn.
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
  return picture[1:-1, 1:-1]


def save_png(path: str | os.PathLike, picture: UInt8[np.ndarray, '_ _ _']) -> None:
  """Writes a picture, uint8 [h, w, 1 or 3], as a PNG file, atomically. Creates its folder."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
  with files.replacing(path) as file:
    image.save(file, format='PNG')
