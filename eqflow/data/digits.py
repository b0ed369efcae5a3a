"""The 1,797 handwritten digits of scikit-learn as a TFDS data set: prepared in a second, no network.

Importing this file registers the name 'digits' with TFDS.
"""

import io
import os
from typing import ClassVar

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

NUM_TRAIN = 1_500


class Digits(tfds.core.GeneratorBasedBuilder):
  """sklearn.datasets.load_digits: uint8 [8, 8, 1] = round(255/16 * images), labels 0 to 9.

  A fixed permutation splits the 1,797 records into 'train' (1,500) and 'heldout' (297).
  """

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'sklearn.datasets.load_digits in a fixed permutation.'}
  # Nothing is downloaded. TFDS would look for checksums next to this file, through a package
  # (importlib_resources) that it does not declare.
  url_infos = None

  def _info(self):
    features = tfds.features.FeaturesDict({
        'image': tfds.features.Image(shape=(8, 8, 1), dtype=np.uint8, encoding_format='png'),
        'label': tfds.features.ClassLabel(num_classes=10),
    })
    return tfds.core.DatasetInfo(
        builder=self, features=features, supervised_keys=('image', 'label'), disable_shuffling=True)

  def _split_generators(self, dl_manager):
    order = permutation()
    return {'train': self._generate_examples(order[:NUM_TRAIN]),
            'heldout': self._generate_examples(order[NUM_TRAIN:])}

  def _generate_examples(self, rows):
    from sklearn.datasets import load_digits
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    for place, row in enumerate(rows):
      yield place, {'image': _png(images[row]), 'label': int(digits.target[row])}


def permutation() -> np.ndarray:
  """The rows of load_digits [1797] in the order that is split into 'train' and 'heldout'."""
  return np.random.RandomState(0).permutation(1_797)


def _png(image):
  # TFDS would encode an array with TensorFlow; it copies a file of encoded bytes.
  file = io.BytesIO()
  Image.fromarray(image).save(file, 'PNG')
  file.seek(0)
  return file


def prepare(data_dir: str | os.PathLike) -> None:
  """Writes the data set to data_dir/digits/1.0.0 as array_record files, about a second.

  Two processes may do so at once: the second to finish keeps what the first has written.
  """
  # Eight lines of progress for one second of work would open every log.
  tfds.disable_progress_bar()
  builder = Digits(data_dir=data_dir, file_format='array_record')
  try:
    builder.download_and_prepare()
  except OSError:
    if not (builder.data_path / 'dataset_info.json').exists():
      raise
