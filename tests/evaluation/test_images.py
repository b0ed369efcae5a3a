"""Grids, scatter plots, and PNG files."""

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
import pytest

from eqflow.evaluation import images


def test_grids_are_filled_row_by_row_with_enlarged_tiles():
  levels = np.array([-1, -.5, 0, .5, 2], np.float32)
  picture = images.grid(np.broadcast_to(levels[:, None, None, None], (5, 8, 8, 1)), columns=3)
  assert picture.shape == (2 * 49 + 1, 3 * 49 + 1, 1) and picture.dtype == np.uint8, \
    f'2 rows of 3 tiles of 48 with lines of 1 between are not {picture.shape}'
  assert_array_equal(picture[24::49, 24::49, 0], [[0, 64, 128], [191, 255, 255]],
                     err_msg='tiles are misplaced, or -1..1 is not mapped to 0..255')
  assert (picture[::49] == 255).all() and (picture[:, ::49] == 255).all(), 'lines must be white'
  assert (picture[1:49, 1:49] == 0).all(), 'a tile must fill its place'


def test_grids_keep_colours_and_reject_nan_and_nothing():
  x = np.random.default_rng(0).uniform(-1, 1, (3, 50, 56, 3)).astype(np.float32)
  picture = images.grid(x, pad=0)
  assert picture.shape == (100, 112, 3), 'three large tiles form a 2x2 grid and are not enlarged'
  assert_allclose(picture[:50, 56:] / 127.5 - 1, x[1], atol=1 / 255 + 1e-6,
                  err_msg='the second picture is not the second tile')
  for bad in (x * np.float32(np.nan), x[:0]):
    with pytest.raises(ValueError, match=r'x have shape'):
      images.grid(bad)


@pytest.mark.parametrize('height,width', [(1, 1), (8, 8), (47, 49), (20, 64), (64, 20), (2, 300)])
@pytest.mark.parametrize('channels', [1, 2, 3, 4, 5])
def test_images_of_any_size_and_channels_are_at_least_48_pixels_wide(height, width, channels):
  x = np.linspace(-1, 1, channels, dtype=np.float32) * np.ones((1, height, width, 1), np.float32)
  picture = images.grid(x, pad=0)
  grey = np.rint(127.5 * np.linspace(-1, 1, channels) + 127.5)
  # From left to right: three channels as colours, then each further one in grey.
  parts = ([grey[:3]] if channels > 2 else []) + [[each] * 3 for each in grey[3 * (channels > 2):]]
  scale = picture.shape[1] // width // len(parts)
  assert width * scale >= 48, f'{height}x{width} becomes {picture.shape}'
  assert min(height, width) * scale >= 48 or max(height, width) * (scale + 1) > 512
  wanted = np.repeat(np.array(parts), width * scale, axis=0) * np.ones((height * scale, 1, 1))
  assert_array_equal(np.broadcast_to(picture, wanted.shape), wanted)


@pytest.mark.parametrize('shape', [
    (8, 8, 1), (64, 64, 3), (256, 256, 3), (512, 512, 4), (2000, 900, 3)])
def test_a_grid_has_as_many_images_as_can_be_looked_at(shape):
  n = images.fitting(shape)
  assert n == 100 if shape[0] < 128 else 1 <= n < 100
  assert n == 1 or n * np.prod(shape[:2]) <= 2**21
  assert images.fitting(shape, most=1) == 1


def test_captions_and_names_of_rows_change_no_image():
  x = np.random.default_rng(0).uniform(-1, 1, (5, 12, 12, 3)).astype(np.float32)
  plain = images.grid(x, columns=2, pad=0)
  texts = ['3', 'a name far too long', '\udcff кошка', '', 'two\nlines']
  said = images.grid(x, columns=2, pad=0, title='five samples of EMA 0.999, step 6,000',
                     captions=texts, rows=['upper', 'middle', 'lower'])
  assert said.shape[1] > plain.shape[1] and said.dtype == np.uint8
  line = (len(said) - len(plain) - 4 * 4) // 4
  assert 11 <= line <= 20 and (said[:line] < 128).any(), 'the title is above'
  tops = [2 * line + 4 + i * (line + 52) for i in range(3)]
  upper = said[tops[0]:tops[0] + 48]
  left = next(j for j in range(said.shape[1]) if np.array_equal(upper[:, j:j + 48], plain[:48, :48]))
  for i, top in enumerate(tops):
    for j in (0, 1):
      assert_array_equal(said[top:top + 48, left + 52 * j:left + 52 * j + 48],
                         plain[48 * i:48 * i + 48, 48 * j:48 * j + 48])
    assert (said[top:top + 48, :left] < 128).any(), f'row {i} has no name'
    band = said[top - line:top, left:]
    dark = [(band[:, j:j + 48] < 128).any() for j in (0, 52)]
    assert dark == [bool(text) for text in [*texts, ''][2 * i:2 * i + 2]], f'captions of row {i}'


def test_stacked_images_are_above_their_counterparts():
  dark, light = np.full((3, 48, 48, 1), -1.0), np.full((3, 48, 48, 1), 0.0)
  dark[2] = -0.5
  picture = images.stacked({'a': dark, 'b': light}, columns=2)[..., 0]
  left = picture.shape[1] - 2 * 49 - 1
  middle = lambda row, column: picture[1 + 49 * row + 24, left + 1 + 49 * column + 24]
  assert [[middle(i, j) for j in range(2)] for i in range(4)] == [
      [0, 0], [128, 128], [64, 255], [128, 255]]
  many = images.stacked(dict(zip('ab', np.zeros((2, 9, 512, 512, 3), np.float32))), columns=20)
  assert many.size < 8e6, f'{many.shape} is too large to be looked at'
  texts = {'b': ['', 'two', 'three']}
  said = images.stacked({'a': dark, 'b': light}, columns=2, captions=texts)[..., 0]
  above = [(said[top:top + 15, -104:] < 100).any() for top in (4, 71, 138, 205)]
  assert above == [False, True, False, True], 'captions are above the images that they are of'


def test_scatter_draws_points_at_their_coordinates():
  x = np.array([[.5, .5], [-.5, -.5], [3, 0], [np.nan, 0]])
  picture = images.scatter(x, np.array([0, 1, 0, 0]), limit=1., size=100)
  dark = np.argwhere((picture != 255).any(2))
  assert len(dark) == 2 * 9, 'two dots of 3x3 are inside the limit'
  assert (picture[24:27, 74:77] == 0).all(), 'the point (.5, .5) is up and to the right, black'
  assert (picture[75, 25] == (230, 159, 0)).all(), 'the other class is down and left, coloured'
  assert (images.scatter(x)[:, 200:] != 255).any(), 'without a limit the farthest point is drawn'
  said = images.scatter(x, np.array([0, 1, 0, 0]), limit=1., size=100, title='points', names=['a', 'b'])
  assert_array_equal(said[-100:, :100], picture, err_msg='a title and names change no point')
  assert (said[:, 100:] == (230, 159, 0)).all(-1).any(), 'the second name has the second colour'


def test_png_files_are_written_atomically(tmp_path, monkeypatch):
  path = tmp_path / 'new' / 'a.png'
  for channels in (1, 3):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, channels)).astype(np.uint8)
    images.save_png(path, picture)
    assert_array_equal(np.asarray(Image.open(path)).reshape(picture.shape), picture,
                       err_msg='the file contains another picture')

  def full(*_):
    raise OSError('disk full')

  monkeypatch.setattr(images.os, 'replace', full)
  with pytest.raises(OSError, match='disk full'):
    images.save_png(path, 255 - picture)
  assert_array_equal(np.asarray(Image.open(path)), picture, err_msg='a failure broke the old file')
  assert [p.name for p in path.parent.iterdir()] == ['a.png'], 'a temporary file was left behind'
