"""Decoding and cropping of one image."""


import numpy as np
from PIL import Image
import pytest

from eqflow.data import images


@pytest.mark.parametrize('mode, pixel, suffix, want', [
    ('RGB', (200, 100, 50), 'png', (200, 100, 50)),
    ('RGB', (200, 100, 50), 'webp', (200, 100, 50)),
    ('RGBA', (200, 100, 50, 128), 'png', (200, 100, 50)),
    ('L', 77, 'bmp', (77, 77, 77)),
    ('1', 1, 'png', (255, 255, 255)),
    ('LA', (77, 9), 'png', (77, 77, 77)),
    ('P', 3, 'gif', (30, 60, 90)),
    ('I;16', 257 * 200, 'png', (200, 200, 200)),
    ('I;16', 257 * 200, 'tiff', (200, 200, 200)),
    ('CMYK', (0, 255, 255, 0), 'tiff', (255, 0, 0)),
])
def test_every_mode_becomes_uint8_rgb(mode, pixel, suffix, want, tmp_path):
  image = Image.new(mode, (6, 5), pixel)
  if mode == 'P':
    image.putpalette([0] * 9 + [30, 60, 90])
  file = tmp_path / f'x.{suffix}'
  image.save(file, **({'lossless': True} if suffix == 'webp' else {}))
  pixels = images.read(file, channels=3)
  assert pixels.dtype == np.uint8 and pixels.shape == (5, 6, 3), (pixels.dtype, pixels.shape)
  assert (pixels == want).all(), f'{mode} in {suffix}: {pixels[0, 0]}, not {want}'


def test_float_pixels_are_rejected(tmp_path):
  Image.new('F', (4, 4), 0.5).save(tmp_path / 'x.tiff')
  with pytest.raises(ValueError, match='float pixels: save the image with 8 or 16 bits'):
    images.read(tmp_path / 'x.tiff', channels=3)


def test_the_exif_orientation_is_applied(tmp_path):
  pixels = np.zeros((8, 16, 3), np.uint8)
  pixels[:, :8] = 255
  exif = Image.Exif()
  exif[0x0112] = 6
  Image.fromarray(pixels).save(tmp_path / 'x.png', exif=exif)
  got = images.read(tmp_path / 'x.png', channels=1)
  assert got.shape == (16, 8, 1), 'orientation 6 must turn the image by 90 degrees'
  assert (got[:8] == 255).all() and (got[8:] == 0).all(), 'its left side must come to the top'


def test_a_crop_by_a_power_of_two_is_the_mean_of_blocks():
  pixels = 4 * np.random.RandomState(0).randint(0, 64, (8, 24), np.uint8)
  means = pixels[:, 8:16].reshape(4, 2, 4, 2).mean((1, 3))
  np.testing.assert_allclose(np.asarray(images.adm_crop(Image.fromarray(pixels), 4)), means,
                             atol=0.5, err_msg='one halving must average 2 x 2 blocks')


@pytest.mark.parametrize('width, height, size', [(37, 53, 8), (64, 64, 64), (15, 16, 8), (5, 9, 8)])
def test_the_crop_equals_adms(width, height, size):
  pixels = np.random.RandomState(1).randint(0, 256, (height, width, 3), np.uint8)
  # As published, in openai/guided-diffusion.
  image = Image.fromarray(pixels)
  while min(*image.size) >= 2 * size:
    image = image.resize(tuple(x // 2 for x in image.size), resample=Image.Resampling.BOX)
  scale = size / min(*image.size)
  image = image.resize(tuple(round(x * scale) for x in image.size),
                       resample=Image.Resampling.BICUBIC)
  array = np.array(image)
  y, x = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
  got = np.asarray(images.adm_crop(Image.fromarray(pixels), size))
  np.testing.assert_array_equal(got, array[y:y + size, x:x + size], 'not the crop of ADM')
