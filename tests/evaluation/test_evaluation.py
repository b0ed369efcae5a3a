"""Distances against scipy and closed forms, manifolds against brute force, baselines on digits."""

import jax
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
import pytest
import scipy.linalg
from sklearn.datasets import load_digits, make_moons
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
import threadpoolctl

from eqflow.evaluation import baselines, detection, distances, features, images, report


@pytest.fixture(scope='module', autouse=True)
def one_thread():
  """On busy cores the threads of OpenBLAS wait for each other: 1 s for what takes 4 ms alone."""
  with threadpoolctl.threadpool_limits(1):
    yield


@pytest.fixture(scope='module')
def digits():
  data = load_digits()
  return (data.images[..., None] / 8 - 1).astype(np.float32), data.target


@pytest.fixture(scope='module')
def rows(digits):
  return report.compare_baselines(*digits)


@pytest.fixture
def small_blocks(monkeypatch):
  """Blocks of a few records, so that small sets meet the seams as well."""
  monkeypatch.setattr(distances, '_NUMBERS', 100)


def covariance(rng, d, rank=None):
  a = rng.standard_normal((d, rank or d))
  return a @ a.T / d


def rotation(rng, d):
  return np.linalg.qr(rng.standard_normal((d, d)))[0]


def test_moments_are_those_of_numpy_whatever_the_blocks(small_blocks):
  x = np.random.default_rng(0).normal(3, 2, (57, 7)).astype(np.float32)
  mean, cov = distances.moments(x)
  assert_allclose(mean, x.astype(float).mean(0), rtol=1e-12, err_msg='mean differs from numpy')
  assert_allclose(cov, np.cov(x.astype(float), rowvar=False), rtol=1e-12,
                  err_msg='covariance differs from the unbiased np.cov')
  assert mean.dtype == cov.dtype == np.float64, 'moments of float32 features must be float64'


@pytest.mark.parametrize('d', [1, 2, 5, 40])
def test_frechet_distance_is_the_formula_with_scipys_matrix_root(d):
  rng = np.random.default_rng(d)
  (m, a), (n, b) = [(rng.standard_normal(d), covariance(rng, d, 2 * d)) for _ in range(2)]
  want = np.sum((m - n) ** 2) + np.trace(a + b - 2 * np.real(scipy.linalg.sqrtm(a @ b)))
  got = distances.frechet_distance((m, a), (n, b))
  assert abs(got - want) < 1e-9 * want, f'{got} differs from the value through sqrtm, {want}'


def test_frechet_distance_of_commuting_gaussians_adds_squared_differences_of_deviations():
  rng = np.random.default_rng(0)
  s, t, m = rng.random((3, 6))
  turn = rotation(rng, 6)
  a, b = [(turn * deviation ** 2) @ turn.T for deviation in (s, t)]
  got = distances.frechet_distance((m, a), (np.zeros(6), b))
  want = np.sum(m ** 2) + np.sum((s - t) ** 2)
  assert abs(got - want) < 1e-12, f'{got} differs from |m|^2 + |s - t|^2 = {want}'


def test_frechet_distance_is_blind_to_rotations_and_to_the_order_of_its_arguments():
  rng = np.random.default_rng(1)
  x, y, turn = rng.standard_normal((30, 8)), rng.random((25, 8)), rotation(rng, 8)
  plain, turned, swapped = [
    distances.frechet_distance(distances.moments(a), distances.moments(b))
    for a, b in ((x, y), (x @ turn, y @ turn), (y, x))]
  assert abs(turned - plain) < 1e-12 * plain, 'rotating both sets must not move the distance'
  assert abs(swapped - plain) < 1e-12 * plain, 'the distance must be symmetric'


def test_frechet_distance_bears_singular_covariances():
  zero = np.zeros(2)
  apart = distances.frechet_distance((zero, np.diag([4., 0.])), (zero, np.diag([0., 9.])))
  assert abs(apart - 13) < 1e-12, f'segments at right angles are 4 + 9 apart, not {apart}'
  points = distances.frechet_distance((zero, np.zeros((2, 2))), (zero + 3, np.zeros((2, 2))))
  assert abs(points - 18) < 1e-12, f'point masses are |3, 3|^2 = 18 apart, not {points}'
  few = np.random.default_rng(2).standard_normal((5, 300))
  same, moved = [distances.frechet_distance(distances.moments(few), distances.moments(few + shift))
                 for shift in (0, .01)]
  assert 0 <= same < 1e-9, f'five records in 300 dimensions are {same} from themselves'
  assert abs(moved - 300 * 1e-4) < 1e-9, f'moving all by .01 costs 300 * .01^2, not {moved}'


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_what_has_no_frechet_distance_is_refused(bad):
  x = np.zeros((4, 3))
  with pytest.raises(ValueError, match='give at least 2'):
    distances.moments(x[:1])
  with pytest.raises(ValueError, match='dimension 3 and 2'):
    distances.frechet_distance(distances.moments(x), distances.moments(x[:, :2]))
  x[2, 1] = bad
  for measure in (distances.moments, distances.nearest_distance):
    with pytest.raises(ValueError, match='1 of 4 records hold nan or inf'):
      measure(x)
  with pytest.raises(ValueError, match='a moment holds nan or inf'):
    distances.frechet_distance((x[2], np.eye(3)), (x[0], np.eye(3)))


def manifolds(real, fake, k):
  """Precision and recall as the paper's algorithm 1 has them, loop by loop."""
  def share(centres, points):
    radii = [sorted(np.sum((c - o) ** 2) for i, o in enumerate(centres) if i != j)[k - 1]
             for j, c in enumerate(centres)]
    return np.mean([any(np.sum((p - c) ** 2) <= r for c, r in zip(centres, radii))
                    for p in points])
  return share(real, fake), share(fake, real)


@pytest.mark.parametrize('k', [1, 3])
@pytest.mark.parametrize('kind', ['normal', 'lattice', 'copies', 'far from zero'])
def test_precision_and_recall_are_the_papers(kind, k, small_blocks):
  rng = np.random.default_rng(k)
  real, fake = rng.normal(0, 1, (40, 3)), rng.normal(.5, .8, (30, 3))
  if kind == 'lattice':
    real, fake = np.rint(real) / 10, np.rint(fake) / 10
  if kind == 'copies':
    real, fake = real[rng.integers(0, 12, 40)], real[rng.integers(0, 25, 30)]
  if kind == 'far from zero':
    real, fake = real + 1e4, fake + 1e4
  got, want = distances.precision_recall(real, fake, k=k), manifolds(real, fake, k)
  assert got == want, f'{kind}: {got} differs from the brute force {want}'


def test_precision_and_recall_know_copies_strangers_and_a_single_mode():
  x = np.random.default_rng(0).random((200, 100)).astype(np.float32)
  measure = distances.precision_recall
  assert measure(x, x) == (1, 1), 'a set covers itself'
  assert measure(x, x + 100) == (0, 0), 'sets far apart cover nothing of each other'
  collapsed = np.repeat(x[:1], 200, axis=0)
  assert measure(x, collapsed) == (1, 1 / 200), 'copies of one record recall that record alone'
  with pytest.raises(ValueError, match='k=3 for 3 records of fake: take 1 <= k < n'):
    measure(x, x[:3])
  with pytest.raises(ValueError, match='real has 100 features, fake 99'):
    measure(x, x[:, 1:])


def test_nearest_distances_are_the_smallest_and_zero_for_copies(small_blocks):
  rng = np.random.default_rng(0)
  a, b = rng.random((30, 5)), rng.random((40, 5))
  want = np.square(a[:, None] - b).sum(2).min(1)
  assert_allclose(distances.nearest_distance(a, b), want, rtol=1e-12,
                  err_msg='differs from the smallest of all distances')
  assert not distances.nearest_distance(b[:9] + 1e5, b + 1e5).any(), 'a copy is at exactly zero'
  assert distances.nearest_distance(b).min() > 0, 'alone, a record is not its own neighbour'


def test_the_nearest_other_digit_is_at_the_distance_another_program_found(digits):
  median = np.median(distances.nearest_distance(features.pixels(digits[0])))
  assert abs(median - 4.06) < .005, f'the median squared distance was 4.06, not {median}'


def test_pixels_keep_small_images_and_pool_large_ones():
  rng = np.random.default_rng(0)
  small, large = rng.random((2, 32, 32, 3)), rng.random((2, 40, 48, 2))
  assert_array_equal(features.pixels(small), small.reshape(2, -1).astype(np.float32),
                     err_msg='3,072 coordinates are to be left alone')
  means = [large[:, i:i + 2, j:j + 2].mean((1, 2)) for i in range(0, 40, 2)
           for j in range(0, 48, 2)]
  assert_allclose(features.pixels(large), np.concatenate(means, axis=1), rtol=1e-6,
                  err_msg='3,840 coordinates are to be means over 2x2 pixels')
  assert features.pixels(np.zeros((1, 256, 256, 3), np.float32)).shape == (1, 3072), \
    '256x256x3 is to become 32x32x3'
  assert features.pixels(np.zeros((2, 5000))).shape == (2, 5000), 'vectors are not pooled'


def test_features_refuse_integers_odd_sides_and_other_ranks():
  with pytest.raises(TypeError, match='uint8: give floating images'):
    features.pixels(np.zeros((2, 8, 8, 1), np.uint8))
  with pytest.raises(ValueError, match='101x100x1 .* cannot be pooled by 2'):
    features.pixels(np.zeros((2, 101, 100, 1)))
  with pytest.raises(ValueError, match='dim=256: x is images'):
    features.random_features(np.zeros((2, 8, 8)))


@pytest.mark.parametrize('shape', [(8, 8, 1), (17, 33, 3), (1, 5, 2), (2,), (64,)])
def test_random_features_depend_on_the_record_and_the_seed_alone(shape):
  x = np.random.default_rng(0).standard_normal((300, *shape)).astype(np.float32)
  first = features.random_features(x, dim=10)
  jax.clear_caches()
  assert_array_equal(features.random_features(x, dim=10), first, err_msg='calls differ')
  assert_allclose(features.random_features(x[::-1][:7], dim=10), first[::-1][:7], rtol=1e-5,
                  atol=1e-5, err_msg='the other records of a batch changed a feature')
  assert np.isfinite(first).all() and first.std(0).min() > 0, 'a feature says nothing'
  assert np.abs(features.random_features(x, dim=10, seed=1) - first).max() > .1, 'seed is not used'


def test_random_features_tell_moons_from_a_gaussian_of_equal_moments():
  x, _ = make_moons(1500, noise=.05, random_state=0)
  real, fake = x[:750], baselines.gaussian(x[750:], 0, clip=False)
  near, far = report.compare(real, x[750:]), report.compare(real, fake)
  assert far['frechet_pixels'] < .02, 'the coordinates have equal moments'
  assert far['frechet_random'] > 5 * near['frechet_random'], 'random features must see the moons'


def test_halves_share_no_record_and_lose_none():
  x = np.arange(11.)[:, None]
  a, b = baselines.halves(x, 0)
  assert (len(a), len(b)) == (5, 6), 'the halves of eleven are five and six'
  assert sorted(np.concatenate([a, b])[:, 0]) == list(range(11)), 'each record is in one half'
  assert_array_equal(a, baselines.halves(x, 0)[0], err_msg='the same seed must give the same half')


def test_a_bootstrap_draws_records_some_twice():
  x = np.arange(1000.)[:, None]
  kinds = np.unique(baselines.bootstrap(x, 0))
  assert set(kinds) <= set(range(1000)), 'only records of the data may be drawn'
  # n (1 - 1/e) different ones are expected, with a standard deviation of 0.31 sqrt(n).
  assert abs(len(kinds) - 632) < 40, f'{len(kinds)} different records of 1000; 632 are expected'


def test_a_gaussian_has_the_moments_of_the_data():
  rng = np.random.default_rng(0)
  root, mean = rng.standard_normal((3, 3)), np.array([5., 0, -1])
  x = rng.standard_normal((20000, 3)) @ root + mean
  fake = baselines.gaussian(x, 1, clip=False)
  assert_allclose(fake.mean(0), mean, atol=.1, err_msg='the mean is not that of the data')
  assert_allclose(np.cov(fake, rowvar=False), root.T @ root, atol=.2,
                  err_msg='the covariance is not that of the data')
  assert abs(np.mean((fake - mean) ** 4) / np.mean((x - mean) ** 4) - 1) < .1, 'no Gaussian'
  assert np.abs(baselines.gaussian(x, 1)).max() == 1, 'clipped draws reach 1 and no further'


def test_a_gaussian_of_fewer_records_than_dimensions_stays_in_their_span():
  x = np.random.default_rng(0).standard_normal((4, 6, 6, 1)).astype(np.float32)
  fake = baselines.gaussian(x, 0, clip=False)
  assert fake.shape == x.shape and fake.dtype == x.dtype, 'draws look as the data does'
  differences = (np.concatenate([x, fake]) - x[0]).reshape(8, -1)
  assert np.linalg.matrix_rank(differences, tol=1e-4) == 3, 'four records span three directions'


def test_a_gaussian_per_class_keeps_labels_in_their_places():
  rng = np.random.default_rng(0)
  label = rng.integers(0, 3, 3000)
  x = rng.normal(0, [[.5], [.1], [.2]], (3, 2))[label] + .01 * rng.standard_normal((3000, 2))
  fake = baselines.gaussian_per_class(x, label, 0)
  for y in range(3):
    assert_allclose(fake[label == y].mean(0), x[label == y].mean(0), atol=.002,
                    err_msg=f'draws at the places of class {y} have another mean')
    assert_allclose(fake[label == y].std(0), .01, rtol=.1, err_msg='of another spread')
  single = baselines.gaussian_per_class(x[:3], np.array([0, 1, 2]), 0)
  assert_allclose(single, x[:3], err_msg='a class of one record can only repeat it')


# From another program, one draw each: frechet_pixels, precision, recall, and how far a draw strays.
KNOWN = {'two halves of the data': (.28, .89, .89, .06),
         'bootstrap of the data': (.07, 1., None, .03),
         'a Gaussian per class': (.38, .70, .71, .04),
         'one Gaussian': (.78, .14, .41, .04)}


@pytest.mark.parametrize('name', KNOWN)
def test_baselines_on_digits_give_the_known_numbers(rows, name):
  distance, precision, recall, tolerance = KNOWN[name]
  row = rows[name]
  assert abs(row['frechet_pixels'] - distance) < tolerance, f'{name}: {row}, known {distance}'
  assert abs(row['precision'] - precision) < .05, f'{name}: {row}, known precision {precision}'
  if recall:
    assert abs(row['recall'] - recall) < .1, f'{name}: {row}, known recall {recall}'


def test_random_features_tell_digits_from_gaussians_by_a_clear_margin(rows):
  halves, _, per_class, one = [row['frechet_random'] for row in rows.values()]
  assert per_class > 4 * halves, f'a Gaussian per class at {per_class}, halves at {halves}'
  assert one > 1.5 * per_class, 'one Gaussian for all digits is worse than ten'


def test_random_features_see_layout(digits, rows):
  x, _ = digits
  mirrored = distances.frechet_distance(*(distances.moments(features.random_features(z))
                                          for z in (x, x[:, :, ::-1])))
  halves = rows['two halves of the data']['frechet_random']
  assert mirrored > 4 * halves, f'mirrored digits at {mirrored}, halves at {halves}'


def test_without_labels_there_is_no_gaussian_per_class(digits):
  names = list(report.compare_baselines(digits[0][:300]))
  assert 'a Gaussian per class' not in names and len(names) == 3, f'unlabelled rows are {names}'
  with pytest.raises(ValueError, match='they must be equal'):
    report.compare(digits[0], digits[0][:, 1:])


def test_tables_are_aligned_markdown_with_blanks_for_what_is_missing():
  text = report.table({'data': {'recall': .9371}, 'EqM, 100 steps': {'recall': 12., 'calls': 100}})
  assert text.splitlines() == ['|                | recall | calls |',
                               '| -------------- | -----: | ----: |',
                               '| data           |  0.937 |       |',
                               '| EqM, 100 steps |     12 |   100 |'], f'the table is\n{text}'


def test_grids_run_row_by_row_with_tiles_enlarged():
  levels = np.array([-1, -.5, 0, .5, 2], np.float32)
  picture = images.grid(np.broadcast_to(levels[:, None, None, None], (5, 8, 8, 1)), columns=3)
  assert picture.shape == (2 * 33 + 1, 3 * 33 + 1, 1) and picture.dtype == np.uint8, \
    f'2 rows of 3 tiles of 32 with lines of 1 between are not {picture.shape}'
  assert_array_equal(picture[16::33, 16::33, 0], [[0, 64, 128], [191, 255, 255]],
                     err_msg='tiles stand in other places, or -1..1 is not 0..255')
  assert (picture[::33] == 255).all() and (picture[:, ::33] == 255).all(), 'lines must be white'
  assert (picture[1:33, 1:33] == 0).all(), 'a tile must fill its place'


def test_grids_keep_colours_and_refuse_what_is_no_picture():
  x = np.random.default_rng(0).uniform(-1, 1, (3, 40, 36, 3)).astype(np.float32)
  picture = images.grid(x, pad=0)
  assert picture.shape == (80, 72, 3), 'three large tiles stand two by two, not enlarged'
  assert_allclose(picture[:40, 36:] / 127.5 - 1, x[1], atol=1 / 255 + 1e-6,
                  err_msg='the second picture is not the second tile')
  for bad in (x[..., :2], x * np.float32(np.nan), x[:0]):
    with pytest.raises(ValueError, match='give finite images with 1 or 3 channels'):
      images.grid(bad)


def test_scatter_draws_points_where_they_are():
  x = np.array([[.5, .5], [-.5, -.5], [3, 0], [np.nan, 0]])
  picture = images.scatter(x, np.array([0, 1, 0, 0]), limit=1., size=100)
  dark = np.argwhere((picture != 255).any(2))
  assert len(dark) == 2 * 9, 'two dots of 3x3 are inside the limit'
  assert (picture[24:27, 74:77] == 0).all(), 'the point (.5, .5) is up and to the right, black'
  assert (picture[75, 25] == (230, 159, 0)).all(), 'the other class is down and left, coloured'
  assert (images.scatter(x)[:, 200:] != 255).any(), 'without a limit the farthest point is drawn'


def test_pictures_are_saved_whole_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / 'new' / 'a.png'
  for channels in (1, 3):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, channels)).astype(np.uint8)
    images.save_png(path, picture)
    assert_array_equal(np.asarray(Image.open(path)).reshape(picture.shape), picture,
                       err_msg='the file holds another picture')

  def full(*_):
    raise OSError('disk full')

  monkeypatch.setattr(images.os, 'replace', full)
  with pytest.raises(OSError, match='disk full'):
    images.save_png(path, 255 - picture)
  assert_array_equal(np.asarray(Image.open(path)), picture, err_msg='a failure broke the old file')
  assert [p.name for p in path.parent.iterdir()] == ['a.png'], 'a temporary file was left behind'


def _pairs_won(inside, outside):
  wins = [(a < b) + (a == b) / 2 for a in inside for b in outside]
  return sum(wins) / len(wins)


def test_auroc_is_the_share_of_pairs_in_order_with_ties_halved():
  rng = np.random.default_rng(0)
  for n, m, levels in [(1, 1, 2), (7, 5, 3), (40, 60, 6), (50, 30, 10**6)]:
    inside, outside = rng.integers(0, levels, n) / 7, rng.integers(1, levels + 1, m) / 7
    found = detection.auroc(inside, outside)
    assert_allclose(found, _pairs_won(inside, outside), rtol=1e-14)
    assert_allclose(detection.auroc(outside, inside), 1 - found, rtol=1e-12)
    labels = np.repeat([0, 1], [n, m])
    assert_allclose(found, roc_auc_score(labels, np.concatenate([inside, outside])), rtol=1e-12)


def test_auroc_takes_infinite_scores_and_refuses_none_and_nan():
  assert detection.auroc(np.array([0.0, 1.0]), np.array([np.inf, 2.0])) == 1
  for inside, outside in [([], [1.0]), ([1.0], []), ([1.0], [np.nan])]:
    with pytest.raises(ValueError, match='scores, . of them NaN: give at least one'):
      detection.auroc(np.array(inside), np.array(outside))


def test_the_nearest_record_is_the_one_that_another_program_finds(small_blocks):
  rng = np.random.default_rng(1)
  a, b = rng.normal(size=(23, 5)), rng.normal(size=(31, 5))
  distance, index = NearestNeighbors(n_neighbors=2).fit(b).kneighbors(a)
  found, squared = distances.nearest(a, b)
  np.testing.assert_array_equal(found, index[:, 0])
  assert_allclose(squared, distance[:, 0]**2, rtol=1e-12)
  distance, index = NearestNeighbors(n_neighbors=2).fit(b).kneighbors(b)
  found, squared = distances.nearest(b)
  np.testing.assert_array_equal(found, index[:, 1])
  assert_allclose(squared, distance[:, 1]**2, rtol=1e-12)
  some = np.array([30, 4, 17])
  assert_array_equal(distances.nearest(b[some], b, leave=some)[0], found[some])


def test_stacked_images_stand_above_their_counterparts():
  dark, light = np.full((3, 32, 32, 1), -1.0), np.full((3, 32, 32, 1), 0.0)
  dark[2] = -0.5
  picture = images.stacked(dark, light, columns=2)[..., 0]
  middle = lambda row, column: picture[1 + 33 * row + 16, 1 + 33 * column + 16]
  assert [[middle(i, j) for j in range(2)] for i in range(4)] == [
      [0, 0], [128, 128], [64, 255], [128, 255]]
