"""Digits and a set of paintings, prepared by TFDS once."""


import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from eqflow.data import digits


class Paintings(tfds.core.GeneratorBasedBuilder):
  """Three unlabelled images of three sizes."""

  VERSION = tfds.core.Version('2.0.0')
  url_infos = None

  def _info(self):
    features = {'image': tfds.features.Image(shape=(None, None, 3)), 'year': np.int64}
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    for i in range(3):
      yield i, {'image': Image.new('RGB', (8 + i, 9), (40 * i, 0, 200)), 'year': 1900 + i}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  place = tmp_path_factory.mktemp('data')
  digits.prepare(place)
  Paintings(data_dir=place, file_format='array_record').download_and_prepare()
  return place
