"""Post-hoc EMA: averages of any width, from snapshots of two [Karras+ 2312.02696, section 3].

A power average of relative width std weighs the parameters at time t by (power + 1)/T (t/T)^power.
`solve` gives the coefficients of the snapshots, `expected_error` the distance of their sum from the
average, `reconstruct` the sum. Time is a count of examples, or any multiple of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import PyTree
import numpy as np

from eqflow import ema
from eqflow.ema import Numbers, checked_std, first_bad, power_from_std

BLOCK = 1 << 16       # elements summed at a time, so that temporaries stay small


def inner_product(power_a: Any, examples_a: Any, power_b: Any,
                  examples_b: Any) -> Numbers | np.float64:
  """integral of p_a(t) p_b(t) dt, p(t) = (power + 1)/T (t/T)^power on [0, T]; float64, broadcasting.

  = (a + 1)(b + 1) (min T/max T)^(power of the later) / ((a + b + 1) max T).
  """
  a, s, b, t = (np.asarray(x, np.float64) for x in (power_a, examples_a, power_b, examples_b))
  later = np.maximum(s, t)
  ratio = (np.minimum(s, t) / later) ** np.where(s < t, b, a)
  return (a + 1) * (b + 1) * ratio / ((a + b + 1) * later)


def solve(in_examples: Any, in_stds: Any, out_examples: Any, out_std: Any) -> Numbers:
  """argmin_x |sum_i x_i p_i - p|^2, over its sum: coefficients [n], or [n, k] for k targets.

  Snapshot i is the average of std in_stds[i] at time in_examples[i]; p is the profile of out_std at
  time out_examples. Snapshots later than that get exactly 0. In float64. Raises ValueError where a
  std is outside (0, 1/sqrt 12), or no snapshot is as early as the target.
  """
  times, powers, target, out_powers = _profiles(in_examples, in_stds, out_examples, out_std)
  used = times <= target
  if not used.any():
    raise ValueError(f'no snapshot at or before {target:.0f} examples: the first of {len(times)} is '
                     f'at {times.min():.0f}; choose a later target')
  length, out_length, gram, towards = _gram(powers[used], times[used], out_powers, target)
  values, vectors = np.linalg.eigh(gram)
  # Nearly equal snapshots have many solutions: take the smallest.
  kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
  found = vectors[:, kept] @ ((vectors[:, kept].T @ towards) / values[kept, None])
  found = found * out_length / length[:, None]
  total = found.sum(0)
  if not (np.isfinite(total) & (total > 0)).all():
    raise ValueError(f'the {used.sum()} snapshots up to {times[used].max():.0f} examples do not '
                     f'overlap an average at {target:.0f}: choose a time nearer to them')
  x = np.zeros((len(times), out_powers.size))
  x[used] = found / total
  return x.reshape((len(times),) + np.shape(out_std))


def expected_error(coefficients: Any, in_examples: Any, in_stds: Any, out_examples: Any,
                   out_std: Any) -> Numbers | np.float64:
  """|sum_i x_i p_i - p| / |p|: the relative distance of the combined profile; a number or [k].

  A difference of numbers near 1: its error is about 1e-8 times the norm of the coefficients.
  """
  times, powers, target, out_powers = _profiles(in_examples, in_stds, out_examples, out_std)
  length, out_length, gram, towards = _gram(powers, times, out_powers, target)
  x = np.asarray(coefficients, np.float64).reshape(len(times), len(out_powers))
  x = x * length[:, None] / out_length
  square = (x * (gram @ x)).sum(0) - 2 * (x * towards).sum(0) + 1
  return np.sqrt(np.maximum(square, 0)).reshape(np.shape(out_std))[()]


def _gram(a, t, out, target):
  """Lengths [n] and [k], and cosines [n, n] and [n, k], of the profiles and the k targets.

  Cosines, so that profiles of any time and width weigh alike in the least squares.
  """
  length = np.sqrt(inner_product(a, t, a, t))
  out_length = np.sqrt(inner_product(out, target, out, target))
  gram = inner_product(a[:, None], t[:, None], a, t) / (length[:, None] * length)
  towards = inner_product(a[:, None], t[:, None], out, target) / (length[:, None] * out_length)
  return length, out_length, gram, towards


def _profiles(in_examples, in_stds, out_examples, out_std):
  """(times [n], powers [n], target time, target powers [k]) in float64, checked."""
  times, stds = (np.atleast_1d(np.asarray(a, np.float64)) for a in (in_examples, in_stds))
  if times.shape != stds.shape or times.ndim != 1 or not times.size:
    raise ValueError(f'in_examples of shape {times.shape} and in_stds of shape {stds.shape}: give '
                     'one time and one std for each snapshot, and at least one snapshot')
  target = np.float64(out_examples)
  for name, values in (('in_examples', times), ('out_examples', np.atleast_1d(target))):
    bad = ~((values > 0) & np.isfinite(values))
    if bad.any():
      raise ValueError(f'{name}={first_bad(values, bad)}: a time is a count of examples, above 0')
  if np.ndim(out_std) > 1:
    raise ValueError(f'out_std of shape {np.shape(out_std)}: give one std or a list of them')
  checked_std(stds, 'in_stds')
  return (times, power_from_std(stds), target,
          np.atleast_1d(power_from_std(checked_std(out_std, 'out_std'))))


def reconstruct(snapshots: Iterable[PyTree], coefficients: Any, *,
                averaged: PyTree | None = None) -> Any:
  """sum_i x_i tree_i on the host, one tree in memory at a time: a tree, or k trees for x [n, k].

  `snapshots` yields the trees in the order of the coefficients, rising in time. Summed in float32,
  or float64 where a leaf is. Leaves without an average, as in `ema.update`, and leaves that are False
  in the tree of bools `averaged` (fixed tables), are those of the last snapshot whose x is not 0. A
  leaf is a tree too: give snapshots of one leaf where a whole model is too large. Raises ValueError
  where snapshots differ in structure or number.
  """
  x = np.asarray(coefficients, np.float64)
  columns, total, treedef = x.reshape(len(x), -1), None, None
  rest = iter(snapshots)
  missing = object()
  for i, row in enumerate(columns):
    tree = next(rest, missing)
    if tree is missing:
      raise ValueError(f'{i} snapshots for {len(columns)} coefficients: give one for each, in order')
    if row.any():   # A later one may hold anything, NaN included.
      total, treedef = _add(total, treedef, row, tree, averaged, i)
    del tree        # Before the next is read: two would be in memory.
  if next(rest, missing) is not missing:
    raise ValueError(f'more snapshots than the {len(columns)} coefficients: give one for each')
  if total is None:
    raise ValueError('all coefficients are 0: solve for a time at or after the first snapshot')
  trees = [treedef.unflatten(sums) for sums in zip(*total)]
  return trees if x.ndim > 1 else trees[0]


def _add(total, treedef, row, tree, averaged, i):
  """([[x tree's leaf added, for each x of row], for each leaf], structure). total=None is 0."""
  leaves, found = jax.tree_util.tree_flatten_with_path(tree)
  if treedef is not None and treedef != found:
    raise ValueError(f'snapshot {i} has the structure {found}, earlier ones {treedef}: give '
                     'snapshots of one network')
  mask = [True] * len(leaves) if averaged is None else found.flatten_up_to(averaged)
  total = total or [None] * len(leaves)
  for j, ((path, leaf), average) in enumerate(zip(leaves, mask)):
    average = average and ema.averaged(leaf)
    leaf = np.asarray(leaf) if average else leaf
    if total[j] is not None and np.shape(total[j][0]) != np.shape(leaf):
      raise ValueError(f'snapshot {i} has {jax.tree_util.keystr(path)} of shape {np.shape(leaf)}, '
                       f'earlier ones {np.shape(total[j][0])}: give snapshots of one network')
    if not average:
      total[j] = [_kept(leaf) if x or total[j] is None else total[j][k] for k, x in enumerate(row)]
      continue
    dtype = np.promote_types(leaf.dtype, np.float32)
    sums = total[j] or [np.zeros(leaf.shape, dtype) for _ in row]
    flat = leaf.reshape(-1)
    for start in range(0, flat.size, BLOCK):
      part = flat[start:start + BLOCK].astype(dtype)
      for x, column in zip(row, sums):
        if x:   # 0 NaN is NaN.
          column.reshape(-1)[start:start + BLOCK] += part * dtype.type(x)
    total[j] = sums
  return total, found


def _kept(leaf):
  """A copy on the host; keys have no numpy array."""
  is_key = jnp.issubdtype(getattr(leaf, 'dtype', type(leaf)), jax.dtypes.extended)
  return leaf if is_key else np.array(leaf)
