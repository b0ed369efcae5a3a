"""One image, from an encoded file to a uint8 array of a fixed size."""

import contextlib
import io
import os
import threading
import warnings

from jaxtyping import UInt8
import numpy as np
from PIL import Image, ImageOps

from eqflow import files

# The modes of PIL for the channels of a data set: grey, grey and alpha, colours, colours and alpha.
MODES = {1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}
# What `convert` turns into any of them.
_EIGHT_BITS = {'1', 'L', 'La', 'LA', 'P', 'PA', 'RGB', 'RGBX', 'RGBa', 'RGBA', 'CMYK', 'YCbCr', 'HSV'}
# Pillow decodes EPS with another program, which a hostile file could drive.
FORMATS = tuple(sorted({*Image.registered_extensions().values()} & set(Image.OPEN) - {'EPS'}))
# Larger images are decoded one at a time.
_LARGE, _ALONE = 2**24, threading.Lock()

# Pillow raises an error at 179 million pixels, which names the image; it warns at half of that.
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)


def read(file: str | os.PathLike | io.BufferedIOBase, *, channels: int,
         size: tuple[int, int] | None = None) -> UInt8[np.ndarray, 'h w c']:
  """The image in `file`, rotated by its EXIF tag and cropped to (height, width); None keeps its size.

  1 to 4 channels are grey, grey and alpha, colours, colours and alpha: alpha is dropped, or 255 if the
  image has none. 16 bits are scaled to 8, and animations give their first frame. Raises PIL's errors
  for a damaged file, and ValueError for pixels without a defined range: float, and 32-bit integers.

  Needs at most 12 bytes a pixel, 3 times what PIL needs for colours. Pillow rejects more than 179
  million pixels, so this is at most 2.1 GB; above 16 million pixels, one is decoded at a time.
  """
  with _decoded(file) as image:
    if image.mode.startswith('I'):
      image = _to_8_bits(image)
    # A grey image is cropped first: colours take four times the memory.
    if image.mode == 'L' and size is not None:
      image = covering_crop(image, *size)
    image = _converted(image, MODES[channels])
    pixels = np.asarray(image if size is None else covering_crop(image, *size))
  return pixels.reshape(*pixels.shape[:2], channels)


def check(file: str | os.PathLike | io.BufferedIOBase) -> tuple[int, int]:
  """(height, width) of an image, which is decoded; raises the errors of `read`."""
  with _decoded(file) as image:
    return image.height, image.width


def size_of(file: str | os.PathLike | io.BufferedIOBase) -> tuple[int, int]:
  """(height, width) of an image by its header, before it is rotated by its EXIF tag."""
  with _opened(file) as image:
    return image.height, image.width


@contextlib.contextmanager
def _opened(file):
  with contextlib.ExitStack() as stack:
    if not hasattr(file, 'read'):
      file = stack.enter_context(files.opened(file))
    try:
      image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
      raise ValueError(f'the image is larger than Pillow decodes ({error}): reduce it') from error
    yield stack.enter_context(image)


@contextlib.contextmanager
def _decoded(file):
  """The decoded image, rotated by its EXIF tag."""
  with contextlib.ExitStack() as stack:
    image = stack.enter_context(_opened(file))
    if image.width * image.height > _LARGE:
      stack.enter_context(_ALONE)
    if image.mode == 'F':
      raise ValueError('float pixels: save the image with 8 or 16 bits a channel')
    if image.mode == 'I' and image.format not in ('PNG', 'PPM'):
      raise ValueError('32-bit pixels: save the image with 8 or 16 bits a channel')
    if not (image.mode in _EIGHT_BITS or image.mode.startswith('I')):
      raise ValueError(f'pixels of mode {image.mode}: save the image as RGB')
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    yield image


def _to_8_bits(image):
  """16 bits scaled to 8, some rows at a time; PIL would clip them at 255: nearly all white."""
  out = np.empty((image.height, image.width), np.uint8)
  step = max(1, 2**20 // image.width)
  for top in range(0, image.height, step):
    rows = np.asarray(image.crop((0, top, image.width, min(top + step, image.height))))
    out[top:top + step] = np.round(np.clip(rows, 0, 65535) / 257)
  return Image.fromarray(out)


def _converted(image, mode):
  if 'A' not in mode:
    # PIL warns that the alpha of a palette is lost.
    image.info.pop('transparency', None)
  # PIL converts few modes to grey and alpha, and to alpha, directly.
  if mode == 'LA' and image.mode not in ('L', 'LA', 'RGB', 'RGBA'):
    image = _converted(image, 'RGBA')
  if mode == 'RGBA' and image.mode not in ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA'):
    image = image.convert('RGB')
  return image.convert(mode)


def covering_crop(image: Image.Image, height: int, width: int) -> Image.Image:
  """The centre (height, width) of the image, resized so that it just covers them.

  Halved with a box filter while both sides are at least twice as long, then resized bicubically, then
  cropped: for squares, the published FIDs on ImageNet use these pixels.   [Dhariwal & Nichol
  2105.05233, guided_diffusion/image_datasets.py]   If a long image would be enlarged, what would be
  cropped away is not computed.
  """
  while image.height >= 2 * height and image.width >= 2 * width:
    image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
  scale = max(height / image.height, width / image.width)
  columns, rows = round(image.width * scale), round(image.height * scale)
  left, top = (columns - width) // 2, (rows - height) // 2
  if scale > 1 and columns * rows > 4 * width * height:
    across, down = image.width / columns, image.height / rows
    box = left * across, top * down, (left + width) * across, (top + height) * down
    # A product may round to just above the side.
    box = *box[:2], min(box[2], image.width), min(box[3], image.height)
    return image.resize((width, height), Image.Resampling.BICUBIC, box)
  image = image.resize((columns, rows), Image.Resampling.BICUBIC)
  return image.crop((left, top, left + width, top + height))
