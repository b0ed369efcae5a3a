"""Fashion-MNIST from its published files: records, splits, rejected files."""

import gzip
import io
import struct

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from eqflow.data import fashion_mnist, pipeline, sources


def _idx(path, array):
  head = struct.pack(f'>BBBB{array.ndim}I', 0, 0, 8, array.ndim, *array.shape)
  path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


@pytest.fixture
def folder(tmp_path):
  rng = np.random.default_rng(0)
  for prefix, count in (('train', 6), ('t10k', 4)):
    _idx(tmp_path / f'{prefix}-images-idx3-ubyte.gz', rng.integers(0, 256, (count, 28, 28)))
    _idx(tmp_path / f'{prefix}-labels-idx1-ubyte.gz', np.arange(count))
  return tmp_path


def test_records_have_the_bytes_and_the_order_of_the_files(folder):
  source = sources.load('fashion_mnist', split='train', data_dir=folder)
  pixels = np.frombuffer(gzip.decompress((folder / 'train-images-idx3-ubyte.gz').read_bytes()),
                         np.uint8, offset=16)
  np.testing.assert_array_equal(np.stack([source[i]['x'] for i in range(6)]).ravel(), pixels)
  assert source.shape == (28, 28, 1) and source.num_classes == 10
  x, label = pipeline.arrays(source)
  assert list(label) == [0, 1, 2, 3, 4, 5] and x.shape == (6, 28, 28, 1) and abs(x).max() <= 1


def test_split_all_is_train_followed_by_test(folder):
  whole = sources.load('fashion_mnist', split='all', data_dir=folder)
  assert [whole[i]['label'] for i in range(10)] == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]


def test_files_are_also_found_in_a_subfolder_fashion_mnist(folder):
  inner = folder / 'fashion_mnist'
  inner.mkdir()
  for path in folder.glob('*.gz'):
    path.rename(inner / path.name)
  assert len(sources.load('fashion_mnist', split='test', data_dir=folder)) == 4


@pytest.mark.parametrize('damage, named', [
    (lambda path: path.write_bytes(path.read_bytes()[:200]), 'cannot be read'),
    (lambda path: path.write_bytes(b'<html>'), 'cannot be read'),
    (lambda path: _idx(path, np.zeros(5)), 'are not Fashion-MNIST'),
    (lambda path: path.write_bytes(gzip.compress(b'\0\0\x08\x03' + b'\0' * 40)), 'IDX'),
])
def test_a_damaged_file_is_rejected(folder, damage, named):
  damage(folder / 'train-images-idx3-ubyte.gz')
  with pytest.raises(ValueError, match=named):
    sources.load('fashion_mnist', split='train', data_dir=folder)


def test_slices_and_sizes_need_tfds(folder):
  with pytest.raises(ValueError, match=r"no split 'train\[:3\]'.*prepare --name=fashion_mnist"):
    sources.load('fashion_mnist', split='train[:3]', data_dir=folder)
  with pytest.raises(ValueError, match=r'size=.32, 32.*28'):
    sources.load('fashion_mnist', split='train', data_dir=folder, size=(32, 32))


def test_missing_files_are_reported_with_two_remedies(tmp_path, monkeypatch):
  monkeypatch.setattr(fashion_mnist, 'SYSTEM', str(tmp_path / 'none'))
  with pytest.raises(FileNotFoundError, match='prepare --name=fashion_mnist(.|\n)*four files'):
    sources.load('fashion_mnist', split='train', data_dir=tmp_path)


@pytest.mark.needs(fashion_mnist.SYSTEM)
def test_debians_package_has_7000_records_per_class(tmp_path):
  source = sources.load('fashion_mnist', split='all', data_dir=tmp_path)
  np.testing.assert_array_equal(np.bincount(source.records.label), np.full(10, 7_000))


def test_a_data_set_prepared_by_tfds_is_preferred_and_has_the_same_records(folder, tmp_path_factory):
  ours = {split: sources.load('fashion_mnist', split=split, data_dir=folder)
          for split in ('train', 'test', 'all')}
  elsewhere = tmp_path_factory.mktemp('prepared')
  _prepare(elsewhere, {split: ours[split] for split in ('train', 'test')})
  for split, source in ours.items():
    theirs = sources.load('fashion_mnist', split=split, data_dir=elsewhere)
    assert theirs.shape == source.shape and theirs.num_classes == 10
    bytes_of = lambda source: sorted((source[i]['label'], source[i]['x'].tobytes())
                                     for i in range(len(source)))
    assert bytes_of(theirs) == bytes_of(source)
  with pytest.raises(ValueError, match="no split 'heldout'"):
    sources.load('fashion_mnist', split='heldout', data_dir=elsewhere)


def _prepare(data_dir, splits):
  """Prepares the data set like TFDS, with its name and features."""
  class FashionMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('3.0.1')
    url_infos = None

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
          'image': tfds.features.Image(shape=(28, 28, 1), encoding_format='png'),
          'label': tfds.features.ClassLabel(num_classes=10)}))

    def _split_generators(self, dl_manager):
      return {split: self._generate_examples(source) for split, source in splits.items()}

    def _generate_examples(self, source):
      for i in range(len(source)):
        file = io.BytesIO()
        Image.fromarray(source[i]['x'][..., 0]).save(file, 'PNG')
        file.seek(0)
        yield i, {'image': file, 'label': source[i]['label']}

  FashionMnist(data_dir=data_dir, file_format='array_record').download_and_prepare()
