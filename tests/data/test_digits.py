"""The digits: records, splits, preparation."""


import numpy as np
from sklearn.datasets import load_digits

from eqflow.data import digits, pipeline, prepare, prepared, sources


def test_the_digits_equal_scikit_learns(data_dir):
  whole, train, heldout = [sources.load('digits', split=split, data_dir=data_dir)
                           for split in ('all', 'train', 'heldout')]
  assert (len(train), len(heldout), len(whole)) == (1500, 297, 1797), 'wrong split sizes'
  assert (whole.shape, whole.num_classes, whole.name) == ((8, 8, 1), 10, 'digits')
  order = digits.permutation()
  assert sorted(order) == list(range(1797)), 'the splits are not disjoint parts of all records'
  reference = load_digits()
  for source, rows in ((whole, order), (train, order[:1500]), (heldout, order[1500:])):
    x, label = pipeline.arrays(source)
    want = np.round(reference.images[rows] * 255 / 16) / 127.5 - 1
    np.testing.assert_allclose(x[..., 0], want, atol=1e-6, err_msg='pixels are not sklearn\'s')
    np.testing.assert_array_equal(label, reference.target[rows], 'labels are not sklearn\'s')


def test_the_digits_are_prepared_on_first_use(tmp_path):
  prepare.prepare('digits', tmp_path / 'by command')
  assert prepared.prepared(tmp_path / 'by command') == ['digits:1.0.0']
  assert len(sources.load('digits', split='heldout', data_dir=tmp_path / 'new')) == 297, (
      'digits must need no preparation')
