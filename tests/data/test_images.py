"""Decoding and cropping of one image."""

import numpy as np
from PIL import Image
import pytest

from eqflow.data import images
from tests.faults.images import peak_memory


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
    ('I;16B', 257 * 200, 'tiff', (200, 200, 200)),
    ('I', 257 * 200, 'pgm', (200, 200, 200)),
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


@pytest.mark.parametrize('channels', [1, 2, 3, 4])
@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'I;16', 'YCbCr'])
def test_every_mode_becomes_1_to_4_channels(mode, channels, tmp_path):
  image = Image.new('RGBA', (6, 5), (255,) * 4)
  image = Image.new(mode, (6, 5), 65535) if mode == 'I;16' else image.convert(mode)
  image.save(tmp_path / 'x.tiff' if mode in ('CMYK', 'YCbCr') else tmp_path / 'x.png')
  pixels = images.read(next(tmp_path.iterdir()), channels=channels, size=(2, 3))
  assert pixels.shape == (2, 3, channels) and pixels.dtype == np.uint8
  assert pixels.min() > 253, f'white has become {pixels[0, 0]}'


def test_alpha_is_dropped_kept_or_full(tmp_path):
  Image.new('RGBA', (4, 4), (9, 9, 9, 0)).save(tmp_path / 'x.png')
  Image.new('L', (4, 4), 9).save(tmp_path / 'y.png')
  read = lambda name, channels: tuple(images.read(tmp_path / name, channels=channels)[0, 0])
  assert [read('x.png', n) for n in (1, 2, 3, 4)] == [(9,), (9, 0), (9, 9, 9), (9, 9, 9, 0)]
  assert [read('y.png', n) for n in (2, 4)] == [(9, 255), (9, 9, 9, 255)]


@pytest.mark.parametrize('mode, said', [('F', 'float pixels'), ('I', '32-bit pixels'), ('LAB', 'LAB')])
def test_pixels_without_a_range_are_rejected(mode, said, tmp_path):
  Image.new(mode, (4, 4)).save(tmp_path / 'x.tiff')
  for read in (images.check, lambda path: images.read(path, channels=3)):
    with pytest.raises(ValueError, match=f'{said}.*: save the image'):
      read(tmp_path / 'x.tiff')


def test_eps_is_not_run(tmp_path):
  (tmp_path / 'x.png').write_text('%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n')
  with pytest.raises(OSError, match='cannot identify'):
    images.check(tmp_path / 'x.png')


def test_pillows_limit_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10)
  Image.new('L', (5, 5)).save(tmp_path / 'x.png')
  with pytest.raises(ValueError, match='larger than Pillow decodes .*25 pixels'):
    images.check(tmp_path / 'x.png')


@pytest.mark.parametrize('width, height', [(1, 20_000), (20_000, 1), (3, 9_000)])
def test_a_long_image_is_cropped_before_it_is_enlarged(width, height, tmp_path):
  pixels = np.zeros((height, width), np.uint8)
  middle = tuple(slice(max(0, side // 2 - 1), side // 2 + 1) for side in pixels.shape)
  pixels[middle] = 255
  Image.fromarray(pixels).save(tmp_path / 'x.png')
  peak_memory()
  got = images.read(tmp_path / 'x.png', channels=3, size=(64, 64))
  peak = peak_memory()
  assert got.shape == (64, 64, 3) and got.max() > 200, 'the middle of the image is lost'
  # Enlarged as a whole it would have 82 or 12 million pixels.
  assert peak < 8e6, f'{peak / 1e6:.0f} MB'


def test_a_rectangle_is_covered_and_its_centre_kept():
  pixels = np.zeros((40, 40), np.uint8)
  pixels[10:30] = 255
  got = np.asarray(images.covering_crop(Image.fromarray(pixels), 10, 20))
  assert got.shape == (10, 20) and got.min() > 250, 'the middle half of the height must remain'
  assert images.covering_crop(Image.new('L', (7, 9)), 9, 7).size == (7, 9)


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
  np.testing.assert_allclose(np.asarray(images.covering_crop(Image.fromarray(pixels), 4, 4)), means,
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
  got = np.asarray(images.covering_crop(Image.fromarray(pixels), size, size))
  np.testing.assert_array_equal(got, array[y:y + size, x:x + size], 'not the crop of ADM')
