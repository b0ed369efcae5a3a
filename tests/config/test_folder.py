"""configs/folder.py: what comes from the folder and from the shape, unless it is given."""

from PIL import Image
import pytest

from eqflow.config import recipes
from tests import config_file


@pytest.fixture
def place(tmp_path):
  for name in ('a', 'b', 'c'):
    (tmp_path / name).mkdir()
    for i in range(7):
      Image.new('L', (4, 4)).save(tmp_path / name / f'{i}.png')
  return tmp_path


def numbers(config):
  return (config.data.num_classes, config.sample.batch, config.evaluate.num_samples, config.model.patch)


def test_counts_come_from_the_folder_and_the_patch_from_the_shape(place):
  config = config_file('folder').get_config()
  assert numbers(config) == (0, 8, 8, 4), 'without a folder'
  config.data.dir = str(place)
  assert numbers(config) == (3, 24, 21, 4)
  config.data.shape = (48, 64, 3)
  assert config.model.patch == 8
  config.data.dir = str(place / 'a')
  assert numbers(config) == (0, 8, 8, 8), 'images without class folders'
  config.data.dir = str(place / 'nowhere')
  assert numbers(config)[:3] == (0, 8, 8), 'training says that it does not exist'


def test_what_is_given_is_kept(place):
  config = config_file('folder').get_config('eqm')
  config.data.dir, config.model.patch, config.sample.batch = str(place), 2, 16
  config.data.num_classes = 0
  assert numbers(config.lock()) == (0, 16, 21, 2)
  recipes.recipe(config)


@pytest.mark.parametrize('shape, patch', [
    ((32, 32, 3), 4), ((64, 64, 1), 8), ((57, 57, 1), 3), ((64, 96, 3), 8), ((53, 53, 3), 1),
    ((1, 1, 1), 1)])
def test_the_patch_divides_both_sides(shape, patch):
  assert config_file('folder').patch(shape) == patch
