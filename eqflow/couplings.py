"""Couplings, (keys [b], x) -> eps: which noise is paired with which data; x keeps its order.

`independent` and `given` run inside a compiled loss. `optimal_transport` and `sinkhorn` run on the
host before it, with POT in float64, and the loss receives their eps through `given`. A callback from
the compiled step could deadlock: it needs a thread while the other devices wait in a collective, and
no thread is free with fewer cores than twice the devices.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int, Num, PyTree, Shaped
import numpy as np

from eqflow import arrays, densities
from eqflow.arrays import Data, Grid, Keys, Number, Stream

Group = Int[Array | np.ndarray, '_'] | None


def independent(keys: Keys, x: Data) -> Data:
  """eps ~ N(0, I), independent of x."""
  return arrays.noise_like(keys, x)


def given(keys: Keys, x: Data, *, eps: Data) -> Data:
  """The given eps: the noise of stored pairs, or the result of another coupling.

  Raises ValueError where its shapes are not x's.
  """
  arrays.check_keys(keys, arrays.batch_size(x))
  arrays.check_alike('eps', eps, 'x', x)
  return eps


def optimal_transport(keys: Keys, x: Data, *, group: Group = None) -> Data:
  """eps_p(i) for x_i, p the permutation of least sum_i |x_i - eps_p(i)|^2, eps ~ N(0, I).

  Permutes the noise of `independent`: squared Euclidean cost over all elements of all leaves, by the
  network simplex of POT [Pooladian+ 2304.14772, Tong+ 2302.00482]. With group [b], the labels of a
  conditional model, noise is permuted within each class only: otherwise noise would depend on the label
  in training, but not in sampling. Runs on the host; raises ValueError while tracing, and unless group
  has one integer for each example.
  """
  return _paired(keys, x, group, lambda cost, rows: _optimal(cost)[0].argmax(1), 'optimal_transport')


def sinkhorn(keys: Keys, x: Data, *, regularization: Number, group: Group = None,
             tolerance: Number = 1e-3) -> Data:
  """eps_j for x_i with probability b P_ij, P the plan of least sum P |x - eps|^2 + reg sum P log P.

  The optimal permutation as regularization -> 0, independent of x as it grows. The cost is the one of
  `optimal_transport`; 2 s^2 gives the coupling of the Schroedinger bridge with diffusion s
  [2302.00482]. Each example draws its partner from its own key, so two examples may get the same eps.
  Raises ValueError where the marginals of the plan have a relative error (root mean square) above
  `tolerance`. `group`, host and tracing as for optimal_transport.
  """
  arrays.check_scalars(regularization=regularization, tolerance=tolerance)
  if not regularization > 0:
    raise ValueError(f'regularization={regularization}: give a number above 0, in units of |x|^2, '
                     'or use optimal_transport')
  arrays.check_keys(keys, arrays.batch_size(x))
  u = np.asarray(_uniform(keys)) if not arrays.is_traced(keys) else None

  def partners(cost, rows):
    below = np.cumsum(_entropic(cost, regularization, tolerance), axis=1)
    return (below < u[rows, np.newaxis] * below[:, -1:]).sum(1)

  return _paired(keys, x, group, partners, 'sinkhorn')


def straightness(path: PyTree[Num[Array | np.ndarray, 'n b ...']],
                 grid: Grid) -> Float[Array, 'b']:
  """int |dz/dt - (z_1 - z_0)|^2 dt per element, of each path: 0 for a line at constant speed.

  `path` [n, b, ...] has the states of `sample_path` at the n times of `grid`, which is rescaled to
  [0, 1]; a velocity is a difference of neighbours. [Liu+ 2209.03003, there summed over elements]
  """
  steps = jnp.diff(grid) if arrays.is_traced(grid) else np.diff(np.asarray(grid, np.float64))
  if not arrays.is_traced(grid) and not steps.sum():
    raise ValueError(f'grid={grid!r:.60} has no length: give times that change')
  # A time that repeats has weight 0, and its velocity must be finite.
  whole, lengths = steps.sum(), steps + (steps == 0)
  z = jax.tree.map(jnp.asarray, path)
  mean = jax.tree.map(lambda a: jnp.broadcast_to(a[-1] - a[0], a[1:].shape), z)
  miss = arrays.combine((whole / lengths, jax.tree.map(lambda a: a[1:], z)),
                        (-whole / lengths, jax.tree.map(lambda a: a[:-1], z)), (-1, mean))
  square = jax.vmap(arrays.square_norm)(miss) / arrays.num_elements(jax.tree.map(lambda a: a[0], z))
  return jnp.asarray(steps / whole, square.dtype) @ square


_noise = jax.jit(arrays.noise_like)
_uniform = jax.jit(lambda keys: densities.draw(arrays.fold(keys, Stream.PARTNER)))


def _paired(keys, x, group, partners: Callable, name):
  if arrays.is_traced(keys, x, group):
    raise ValueError(f'{name} solves on the host and was called while tracing: call it before the '
                     f'compiled step, eps = {name}(keys, x), and give the loss '
                     'coupling=Partial(couplings.given, eps=eps)')
  ot = _pot()
  arrays.check_keys(keys, arrays.batch_size(x))
  arrays.check_floating('x', x)
  if group is not None:
    arrays.check_labels('group', group, arrays.batch_size(x))
  eps = jax.tree.map(np.asarray, _noise(keys, x))
  a, b = _flat(x), _flat(eps)
  group = np.zeros(len(a), int) if group is None else np.asarray(group)
  partner = np.empty(len(a), int)
  for label in np.unique(group):
    rows = np.flatnonzero(group == label)
    cost = ot.dist(a[rows], b[rows])
    if not np.isfinite(cost).all():
      raise ValueError(f'{name}: x has NaN or infinite elements; give finite data')
    partner[rows] = rows[partners(cost, rows)]
  return jax.tree.map(lambda a: a[partner], eps)


def _pot():
  try:
    import ot
  except ImportError as error:
    raise ImportError("optimal transport and Sinkhorn need POT: pip install -e '.[ot]'") from error
  return ot


def _flat(tree) -> Shaped[np.ndarray, '_ _']:
  leaves = [np.asarray(a, np.float64) for a in jax.tree.leaves(tree)]
  return np.concatenate([arrays.rows(a) for a in leaves], axis=1)


def _optimal(cost):
  """The optimal plan [n, n], a permutation, and what it costs beyond its dual bound, [n, n] >= 0."""
  ot = _pot()
  # Integer marginals: the simplex then returns a permutation without rounding.
  ones = np.ones(len(cost))
  plan, log = ot.emd(ones, ones, cost, numItermax=100_000_000, log=True)
  if log['warning']:
    raise ValueError(f'no optimal plan for {len(cost)} examples ({log["warning"]}): give a '
                     'smaller batch')
  return plan, cost - log['u'][:, np.newaxis] - log['v']


def _entropic(cost, regularization, tolerance):
  """The entropic plan [n, n]."""
  ot = _pot()
  n = len(cost)
  even = np.full(n, 1 / n)
  # Subtracting potentials from the cost does not change the plan. With the potentials of the optimal
  # plan every row and column has a cost of 0, so the iteration never reaches 0/0.
  plan = ot.sinkhorn(even, even, _optimal(cost)[1], regularization, numItermax=100_000, warn=False,
                     stopThr=tolerance / np.sqrt(n))
  missed = max(np.sqrt(np.mean((n * plan.sum(axis) - 1) ** 2)) for axis in (0, 1))
  if not missed <= tolerance:
    raise ValueError(f'the plan at regularization={regularization} misses its marginals by '
                     f'{missed:.2g}, more than tolerance={tolerance}: give a larger regularization '
                     'or tolerance, or use optimal_transport')
  return plan
