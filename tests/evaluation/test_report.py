"""Baselines' rows on the digits against known numbers, and tables."""

import numpy as np
import pytest
from sklearn.datasets import make_moons

from eqflow.evaluation import baselines, distances, features, report


@pytest.fixture(scope='module')
def rows(digits):
  x, label = digits
  return dict(report.compare_all({'the same digits': x}, x, label))


# From another program, one draw each: frechet_pixels, precision, recall, and the spread of a draw.
KNOWN = {'two halves of the data': (.28, .89, .89, .06),
         'bootstrap of the data': (.07, 1., None, .03),
         'a Gaussian per class': (.38, .70, .71, .04),
         'one Gaussian': (.78, .14, .41, .04)}


@pytest.mark.parametrize('name', KNOWN)
def test_baselines_on_digits_give_known_numbers(rows, name):
  distance, precision, recall, tolerance = KNOWN[name]
  row = rows[name]
  assert abs(row['frechet_pixels'] - distance) < tolerance, f'{name}: {row}, known {distance}'
  assert abs(row['precision'] - precision) < .05, f'{name}: {row}, known precision {precision}'
  if recall:
    assert abs(row['recall'] - recall) < .1, f'{name}: {row}, known recall {recall}'


def test_random_features_separate_digits_from_gaussians(rows):
  halves, _, per_class, one = [row['frechet_random'] for row in list(rows.values())[1:]]
  assert per_class > 4 * halves, f'a Gaussian per class at {per_class}, halves at {halves}'
  assert one > 1.5 * per_class, 'one Gaussian for all digits is worse than ten'


def test_random_features_separate_moons_from_a_gaussian_of_equal_moments():
  x, _ = make_moons(1500, noise=.05, random_state=0)
  real, fake = x[:750], baselines.gaussian(x[750:], 0, clip=False)
  real, other, fake = map(report.summary, (real, x[750:], fake))
  near, far = report.compare(real, other), report.compare(real, fake)
  assert far['frechet_pixels'] < .02, 'the pixel moments are equal'
  assert far['frechet_random'] > 5 * near['frechet_random'], 'random features must separate the moons'


def test_random_features_separate_mirrored_digits(digits, rows):
  x, _ = digits
  mirrored = distances.frechet_distance(*(distances.moments(features.random_features(z))
                                          for z in (x, x[:, :, ::-1])))
  halves = rows['two halves of the data']['frechet_random']
  assert mirrored > 4 * halves, f'mirrored digits at {mirrored}, halves at {halves}'


def test_rows_come_one_by_one_samples_first(digits):
  x = digits[0][:40]
  rows = report.compare_all({'copies': x[::-1], 'noise': np.sign(x)}, x)
  name, copies = next(rows)
  assert name == 'copies' and copies['frechet_pixels'] < 1e-9 and copies['recall'] == 1, copies
  rows.close()   # The other rows are not computed.
  names = [name for name, _ in report.compare_all({'copies': x}, x)]
  assert names == ['copies', 'two halves of the data', 'bootstrap of the data', 'one Gaussian'], \
      f'unlabelled rows are {names}'
  with pytest.raises(ValueError, match='real has 64 features, fake 56'):
    report.compare(report.summary(x), report.summary(x[:, 1:]))


def test_tables_are_aligned_markdown_with_blank_missing_cells():
  text = report.table({'data': {'recall': .9371}, 'EqM, 100 steps': {'recall': 12., 'calls': 100}})
  assert text.splitlines() == ['|                | recall | calls |',
                               '| -------------- | -----: | ----: |',
                               '| data           |  0.937 |       |',
                               '| EqM, 100 steps |     12 |   100 |'], f'the table is\n{text}'
