"""Grids, scatter plots, and PNG files."""

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
import pytest

from eqflow.evaluation import images


def test_grids_are_filled_row_by_row_with_enlarged_tiles():
  levels = np.array([-1, -.5, 0, .5, 2], np.float32)
  picture = images.grid(np.broadcast_to(levels[:, None, None, None], (5, 8, 8, 1)), columns=3)
  assert picture.shape == (2 * 33 + 1, 3 * 33 + 1, 1) and picture.dtype == np.uint8, \
    f'2 rows of 3 tiles of 32 with lines of 1 between are not {picture.shape}'
  assert_array_equal(picture[16::33, 16::33, 0], [[0, 64, 128], [191, 255, 255]],
                     err_msg='tiles are misplaced, or -1..1 is not mapped to 0..255')
  assert (picture[::33] == 255).all() and (picture[:, ::33] == 255).all(), 'lines must be white'
  assert (picture[1:33, 1:33] == 0).all(), 'a tile must fill its place'


def test_grids_keep_colours_and_reject_other_channels_and_nan():
  x = np.random.default_rng(0).uniform(-1, 1, (3, 40, 36, 3)).astype(np.float32)
  picture = images.grid(x, pad=0)
  assert picture.shape == (80, 72, 3), 'three large tiles form a 2x2 grid and are not enlarged'
  assert_allclose(picture[:40, 36:] / 127.5 - 1, x[1], atol=1 / 255 + 1e-6,
                  err_msg='the second picture is not the second tile')
  for bad in (x[..., :2], x * np.float32(np.nan), x[:0]):
    with pytest.raises(ValueError, match=r'x have shape'):
      images.grid(bad)


def test_stacked_images_are_above_their_counterparts():
  dark, light = np.full((3, 32, 32, 1), -1.0), np.full((3, 32, 32, 1), 0.0)
  dark[2] = -0.5
  picture = images.stacked(dark, light, columns=2)[..., 0]
  middle = lambda row, column: picture[1 + 33 * row + 16, 1 + 33 * column + 16]
  assert [[middle(i, j) for j in range(2)] for i in range(4)] == [
      [0, 0], [128, 128], [64, 255], [128, 255]]


def test_scatter_draws_points_at_their_coordinates():
  x = np.array([[.5, .5], [-.5, -.5], [3, 0], [np.nan, 0]])
  picture = images.scatter(x, np.array([0, 1, 0, 0]), limit=1., size=100)
  dark = np.argwhere((picture != 255).any(2))
  assert len(dark) == 2 * 9, 'two dots of 3x3 are inside the limit'
  assert (picture[24:27, 74:77] == 0).all(), 'the point (.5, .5) is up and to the right, black'
  assert (picture[75, 25] == (230, 159, 0)).all(), 'the other class is down and left, coloured'
  assert (images.scatter(x)[:, 200:] != 255).any(), 'without a limit the farthest point is drawn'


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
