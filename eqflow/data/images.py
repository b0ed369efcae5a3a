"""One image, from an encoded file to a uint8 array of a fixed size."""

import io
import os

from jaxtyping import UInt8
import numpy as np
from PIL import Image, ImageOps

MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}


def read(file: str | os.PathLike | io.BufferedIOBase, *, channels: int,
         size: int | None = None) -> UInt8[np.ndarray, 'h w c']:
  """The image in `file`, rotated by its EXIF tag and cropped to size x size; size=None keeps its size.

  Every mode of PIL becomes `channels` channels: 16 bits are scaled to 8, alpha is dropped, and
  animations give their first frame. Raises PIL's errors for a damaged file, and ValueError for float
  pixels, since no format defines their range.
  """
  with Image.open(file) as image:
    image = ImageOps.exif_transpose(image)
    if image.mode == 'F':
      raise ValueError('float pixels: save the image with 8 or 16 bits a channel')
    if image.mode.startswith('I'):
      # PIL would clip 16 bits at 255: nearly all white.
      image = Image.fromarray(np.round(np.clip(np.asarray(image), 0, 65535) / 257).astype(np.uint8))
    image = image.convert(MODES[channels])
  pixels = np.asarray(image if size is None else adm_crop(image, size))
  return pixels.reshape(*pixels.shape[:2], channels)


def adm_crop(image: Image.Image, size: int) -> Image.Image:
  """The centre size x size of the image, its shorter side resized to `size`.

  Halved with a box filter while the shorter side is at least 2 size, then resized bicubically, then
  cropped: the published FIDs on ImageNet use these pixels.   [Dhariwal & Nichol 2105.05233,
  guided_diffusion/image_datasets.py]
  """
  while min(image.size) >= 2 * size:
    image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
  scale = size / min(image.size)
  image = image.resize((round(image.width * scale), round(image.height * scale)),
                       Image.Resampling.BICUBIC)
  left, top = (image.width - size) // 2, (image.height - size) // 2
  return image.crop((left, top, left + size, top + size))
