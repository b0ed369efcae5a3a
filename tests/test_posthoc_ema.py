"""Post-hoc EMA: averages of any width, reconstructed from snapshots."""

import fractions
import itertools
import re
import tracemalloc

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from eqflow import ema, posthoc_ema
from tests import ROOT
from tests.averages import basis, track


DOCS = ROOT / 'docs'


def test_inner_products_are_the_integrals():
  for a, b, s, t in itertools.product((0, 1, 3, 17), (0, 2, 7), (1, 5, 64), (3, 64)):
    # Of the polynomial (a + 1)(b + 1) x^(a + b)/(s^(a + 1) t^(b + 1)), from 0 to min(s, t).
    exact = fractions.Fraction((a + 1) * (b + 1) * min(s, t) ** (a + b + 1),
                               s ** (a + 1) * t ** (b + 1) * (a + b + 1))
    np.testing.assert_allclose(posthoc_ema.inner_product(a, s, b, t), float(exact), rtol=1e-12)
  # Gauss-Legendre in u = x^(1/8), where non-integer powers are smooth.
  nodes, weights = np.polynomial.legendre.leggauss(100)
  for a, b, s, t in ((16.97, 6.94, 1.0, 0.7), (6.94, 0.72, 0.3, 1.0), (1.83, 3.56, 2e9, 1e9)):
    end = min(s, t) ** (1 / 8)
    u = end * (nodes + 1) / 2
    x, dx = u**8, 8 * u**7 * weights * end / 2
    product = (a + 1) / s * (x / s) ** a * (b + 1) / t * (x / t) ** b
    np.testing.assert_allclose(posthoc_ema.inner_product(a, s, b, t), product @ dx, rtol=1e-12)
  assert posthoc_ema.inner_product(np.ones((3, 1)), 1, np.ones(2), 5).shape == (3, 2)


UPDATES, SNAPSHOTS, IN = 4096, 64, (0.05, 0.1)
OUT = np.array([0.05, 0.06, 0.08, 0.1, 0.12, 0.135, 0.15, 0.18, 0.2])
TIMES = np.repeat(np.arange(1, SNAPSHOTS + 1) * (UPDATES // SNAPSHOTS), len(IN))
STDS = np.tile(IN, SNAPSHOTS)


@pytest.fixture(scope='module')
def tracked():
  """{std: [snapshots, updates]} in float64: row i is the average's profile at snapshot i."""
  with jax.enable_x64(True):
    return track(sorted({*IN, *OUT.tolist()}), UPDATES, batch=1, every=1, params=basis(UPDATES),
                 chunks=SNAPSHOTS)


def snapshot_trees(tracked):
  """The trees of the snapshots in order of (TIMES, STDS)."""
  return ({'w': tracked[std][i]} for i in range(SNAPSHOTS) for std in IN)


@pytest.mark.parametrize('time', [UPDATES, UPDATES // 2])
def test_reconstruction_equals_an_average_that_was_not_tracked(tracked, time):
  x = posthoc_ema.solve(TIMES, STDS, time, OUT)
  expected = posthoc_ema.expected_error(x, TIMES, STDS, time, OUT)
  np.testing.assert_allclose(x.sum(0), 1, rtol=1e-12)
  assert (x[TIMES > time] == 0).all() and (x[TIMES == time] != 0).any()
  found = posthoc_ema.reconstruct(snapshot_trees(tracked), x)
  rows = np.stack([tree['w'] for tree in snapshot_trees(tracked)])
  for tree, column, std, error in zip(found, x.T, OUT, expected):
    assert tree['w'].dtype == np.float64
    np.testing.assert_allclose(tree['w'], column @ rows, rtol=0, atol=1e-12 * abs(rows).max())
    direct = tracked[std][time // (UPDATES // SNAPSHOTS) - 1]
    distance = np.linalg.norm(tree['w'] - direct) / np.linalg.norm(direct)
    # Half-way there are half as many snapshots.
    assert distance < (2e-3 if time == UPDATES else 1e-2), f'std {std}: {distance:.1e}'
    if std in IN:
      # The snapshot itself: nothing to expect but rounding.
      assert distance < 1e-9 and error < 1e-6
    else:
      assert abs(distance / error - 1) < 0.05, f'std {std}: {distance:.3e}, expected {error:.3e}'


def test_expected_error_is_the_distance_of_the_profiles():
  times, stds, target = [3e5, 1e6, 1e6], [0.05, 0.1, 0.2], 1e6
  wide = [0.07, 0.15]
  x = posthoc_ema.solve(times, stds, target, wide)
  t = (np.arange(400_000) + 0.5) / 400_000 * target
  profile = lambda std, end: np.where(t < end, (t / end) ** ema.power_from_std(std)
                                      * (ema.power_from_std(std) + 1) / end, 0)
  rows = np.stack([profile(*pair) for pair in zip(stds, times)])
  for std, column, error in zip(wide, x.T, posthoc_ema.expected_error(x, times, stds, target, wide)):
    wanted = profile(std, target)
    distance = np.linalg.norm(column @ rows - wanted) / np.linalg.norm(wanted)
    np.testing.assert_allclose(error, distance, rtol=1e-4)
    # Least squares: the best sum, up to its rescaling.
    best = np.linalg.lstsq(rows.T, wanted)[0]
    np.testing.assert_allclose(column, best / best.sum(), rtol=1e-3, atol=1e-4)


def test_a_target_that_is_a_snapshot_reconstructs_it():
  x = posthoc_ema.solve([10, 20, 30, 20], [0.05, 0.1, 0.1, 0.05], 20, 0.1)
  np.testing.assert_allclose(x, [0, 1, 0, 0], atol=1e-9)
  assert x.shape == (4,) and np.ndim(posthoc_ema.expected_error(
      x, [10, 20, 30, 20], [0.05, 0.1, 0.1, 0.05],
                                                        20, 0.1)) == 0
  # Two of the same: any split is a solution, the even one the smallest.
  np.testing.assert_allclose(posthoc_ema.solve([20, 20], [0.1, 0.1], 20, 0.1), 0.5, rtol=1e-9)
  np.testing.assert_allclose(posthoc_ema.solve([10], [0.1], 1e6, 0.2), 1)


@pytest.mark.parametrize('scale', [1, 1e-3, 2048e6])
def test_the_unit_of_time_does_not_matter(scale):
  found = posthoc_ema.solve(TIMES * scale, STDS, UPDATES * scale, OUT)
  np.testing.assert_allclose(found, posthoc_ema.solve(TIMES, STDS, UPDATES, OUT), atol=1e-7)


def test_many_snapshots_stay_exact():
  times, stds = np.repeat(np.arange(1, 257) * 8e6, 2), np.tile(IN, 256)
  x = posthoc_ema.solve(times, stds, times[-1], OUT)
  assert (posthoc_ema.expected_error(x, times, stds, times[-1], OUT) < 2e-4).all()
  assert abs(x).sum(0).max() < 3, 'coefficients that cancel would lift the rounding of snapshots'


def test_fixed_tables_and_integers_come_from_the_last_snapshot_used():
  trees = [{'w': np.float32([i]), 'table': np.float32([10 + i]), 'n': np.int32(i)} for i in range(3)]
  trees[2]['w'][:] = np.nan
  x = np.array([[0.25, 1.0], [0.75, 0.0], [0.0, 0.0]])
  first, second = posthoc_ema.reconstruct(trees, x, averaged={'w': True, 'table': False, 'n': True})
  assert first == {'w': 0.75, 'table': 11, 'n': 1} and first['n'].dtype == np.int32
  assert second['w'] == 0 and second['w'].dtype == np.float32
  one = posthoc_ema.reconstruct(iter(trees), x[:, 0])
  assert one['table'] == 10.75 and trees[1]['table'] == 11


def test_low_precision_is_summed_in_float32():
  trees = [{'w': jnp.full(3, 1 + i / 128, jnp.bfloat16)} for i in range(2)]
  found = posthoc_ema.reconstruct(trees, [0.5, 0.5])['w']
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, np.float32(1 + 1 / 256))


@pytest.mark.parametrize('targets,bound', [(1, 2.2), (2, 3.2), (6, 7.2)])
def test_one_snapshot_is_in_memory_at_a_time(targets, bound):
  size, count = 1 << 20, 12
  trees = ({name: np.full(size, i, np.float32) for name in 'abcd'} for i in range(count))
  x = np.full((count, targets), 1 / count)
  tracemalloc.start()
  try:
    found = posthoc_ema.reconstruct(trees, x)
    peak = tracemalloc.get_traced_memory()[1] / (4 * size * 4)
  finally:
    tracemalloc.stop()
  np.testing.assert_allclose(found[-1]['d'][:5], (count - 1) / 2, rtol=1e-6)
  assert peak < bound, f'{peak:.2f} trees for {targets} targets'


def test_the_documented_program_reproduces_the_tracked_average():
  code = re.search(r'```python\n(.*?)```', (DOCS / 'posthoc_ema.md').read_text(), re.S).group(1)
  names = {}
  exec(compile(code, 'posthoc_ema.md', 'exec'), names)
  tracked = names['state'].means['0.15']
  for name, found in names['averages'][0.15].items():
    error = np.linalg.norm(found - tracked[name]) / np.linalg.norm(tracked[name])
    assert error < 2e-3, f'{name}: {error:.1e}'


@pytest.mark.parametrize('call,message', [
    (lambda: posthoc_ema.solve([1, 2], [0.1, 0.5], 2, 0.1), 'in_stds=0.5 is outside'),
    (lambda: posthoc_ema.solve([1, 2], [0.1, 0.1], 2, [0.1, 0.289]), 'out_std=0.289 is outside'),
    (lambda: posthoc_ema.solve([10, 20], [0.1, 0.1], 9, 0.1),
     'no snapshot at or before 9 examples: the first of 2 is at 10'),
    (lambda: posthoc_ema.solve([10, 20], [0.1], 20, 0.1), 'one time and one std for each snapshot'),
    (lambda: posthoc_ema.solve([], [], 20, 0.1), 'at least one snapshot'),
    (lambda: posthoc_ema.solve([0, 20], [0.1, 0.1], 20, 0.1), 'in_examples=0: a time is a count'),
    (lambda: posthoc_ema.solve([10], [0.1], float('nan'), 0.1), 'out_examples=nan: a time is a count'),
    (lambda: posthoc_ema.solve([10], [0.1], 20, [[0.1]]), 'give one std or a list'),
    (lambda: posthoc_ema.solve([1], [0.1], 1e9, 0.002), '1 snapshots up to 1 examples'),
    (lambda: posthoc_ema.reconstruct([{'w': np.ones(2)}], [0.5, 0.5]),
     '1 snapshots for 2 coefficients'),
    (lambda: posthoc_ema.reconstruct([np.ones(2)] * 3, [0.5, 0.5]), 'more snapshots than the 2'),
    (lambda: posthoc_ema.reconstruct([np.ones(2)], [0.0]), 'all coefficients are 0'),
    (lambda: posthoc_ema.reconstruct([{'w': np.ones(2)}, {'v': np.ones(2)}], [1, 1]),
     'snapshot 1 has the structure'),
    (lambda: posthoc_ema.reconstruct([{'w': np.ones(2)}, {'w': np.ones((2, 1))}], [1, 1]),
     r"\['w'\] of shape \(2, 1\), .*\(2,\)"),
])
def test_bad_input_is_rejected(call, message):
  with pytest.raises(ValueError, match=message):
    call()
