"""--neighbours on the digits."""

import re

import numpy as np
from PIL import Image
import pytest

from eqflow.commands import nearest
from eqflow.runs import dataset
from tests import config_file

SHAPE = 8, 8, 1


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  config = config_file('digits').get_config()
  config.data.dir = str(tmp_path_factory.mktemp('data'))
  return config.lock()


@pytest.fixture
def heldout(config):
  """The config of 297 records, as if they had been trained on."""
  config = config.copy_and_resolve_references().unlock()
  config.data.split = 'heldout'
  return config


def test_copies_of_training_records_are_detected(config, tmp_path, capsys):
  train = dataset.training_records(config)
  nearest.report(config, tmp_path, train[[5, 700, 3]])
  out = capsys.readouterr().out
  pattern = 'nearest of 1,797 training .* median: 0 for 3 samples, ([0-9.]*) between records'
  found = re.search(pattern, out)
  # The number is from another program, for digits in 17 levels of grey.
  assert abs(float(found.group(1)) - 4.06) < 0.02, out
  assert '100% of the samples' in out
  picture = np.asarray(Image.open(tmp_path / 'neighbours.png'))
  # Two rows of 48 pixels, each below a line of text, under a title; all are 4 pixels apart.
  upper, lower = picture[34:82, 60:200], picture[101:149, 60:200]
  np.testing.assert_array_equal(upper, lower, err_msg='a copy must be above itself')
  assert upper.std() > 50, 'the rows show nothing'
  far = np.random.default_rng(0).normal(size=(3, *SHAPE)).astype(np.float32)
  nearest.report(config, tmp_path, far)
  assert ' 0% of the samples' in capsys.readouterr().out


def test_the_nearest_record_of_each_sample_is_saved(heldout, tmp_path):
  records = dataset.training_records(heldout)[[5, 200, 3]]
  x = records + np.float32([0, 0.01, 0]).reshape(3, 1, 1, 1) * (records < 0)
  nearest.report(heldout, tmp_path, x)
  found = np.load(tmp_path / 'neighbours.npz')
  np.testing.assert_array_equal(found['index'], [5, 200, 3])
  np.testing.assert_allclose(found['squared'], np.square(x - records).sum((1, 2, 3)))
  assert not found['mirrored'].any() and (found['squared'] > 0).tolist() == [False, True, False]


def test_mirrored_records_count_if_the_data_are_flipped(heldout, tmp_path, capsys):
  plain = dataset.training_records(heldout)
  heldout.data.flip = True
  nearest.report(heldout, tmp_path, plain[[5, 200, 3]][:, :, ::-1])
  found = np.load(tmp_path / 'neighbours.npz')
  np.testing.assert_array_equal(found['squared'], 0)
  np.testing.assert_array_equal(found['index'], [5, 200, 3])
  assert found['mirrored'].all()
  assert 'nearest of 594 training records, half of them mirrored' in capsys.readouterr().out
