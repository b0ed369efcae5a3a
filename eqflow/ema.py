"""Exponential and power moving averages of the parameters in training: {name: parameter tree}.

One rule, mean <- mean + rate (params - mean), with a rate for each name at each step. A leaf that is
neither floating nor complex (a count, a mask, a random key) has no mean: its average is its newest
value, here and in `posthoc_ema.reconstruct`. A power average of relative width std weighs the
parameters at time t by (power + 1)/T (t/T)^power [Karras+ 2312.02696, section 3]; `posthoc_ema` makes
averages of other widths from its snapshots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PyTree
import numpy as np

from eqflow import arrays

WIDEST = 12 ** -0.5   # the std of power 0, where all parameters weigh the same

Numbers = Float[np.ndarray, '...']


def init(params: PyTree, names: Any) -> dict[str, PyTree]:
  """{name: params}: every average starts at the parameters, in float32 or wider.

  In bfloat16 a thousandth of the difference rounds away, and the average would not move.
  """
  def kept(a):
    narrow = averaged(a) and jnp.finfo(jnp.result_type(a)).bits < 32
    return jnp.array(a, jnp.float32 if narrow else None)
  for leaf in jax.tree.leaves(params):
    if not isinstance(leaf, (int, float, complex, np.ndarray, np.generic, jax.Array)):
      raise TypeError(f'params has the leaf {leaf!r:.60}: give arrays')
  return {name: jax.tree.map(kept, params) for name in names}


def averaged(leaf: Any) -> bool:
  """Whether a leaf has an average: floating and complex leaves have, others take the newest value."""
  return jnp.issubdtype(getattr(leaf, 'dtype', type(leaf)), jnp.inexact)


def update(emas: Mapping[str, PyTree], params: PyTree,
           rates: Mapping[str, ArrayLike]) -> dict[str, PyTree]:
  """mean + rate (params - mean), for each average with its own rate = 1 - decay in [0, 1].

  Leaves without an average, such as counts, masks and keys, take their newest value. Takes rates, not
  decays: in float32 a rate of 1e-6 has an error of 1e-13, but 1 - decay one of 6e-8, which is 6 % of
  it. Raises ValueError where the shapes of params differ from an average's.
  """
  def average(mean, rate):
    arrays.check_alike('params', params, 'their average', mean)
    def leaf(m, p):   # A copy: parameters may be donated, their averages stay.
      return m + (rate * (jnp.asarray(p, m.dtype) - m)).astype(m.dtype) if averaged(p) else jnp.array(p)
    return jax.tree.map(leaf, mean, params)
  return {name: average(mean, rates[name]) for name, mean in emas.items()}


def warmed(decay: ArrayLike, num_updates: Int[ArrayLike, '']) -> Float[Array, '']:
  """min(decay, (1 + n)/(10 + n)): a decay that soon forgets the initial parameters.

  Without it an average of decay 0.999 still has 5 % of its start after 3,000 updates.
  """
  return jnp.minimum(decay, (1 + num_updates) / (10 + num_updates))


def std_from_power(power: Any) -> Numbers | np.float64:
  """sqrt((power + 1)/((power + 2)^2 (power + 3))): the std of t/T under (power + 1)(t/T)^power.

  float64, for a number or an array. Raises ValueError where a power is negative.
  """
  power = np.asarray(power, np.float64)
  if not ((power >= 0) & np.isfinite(power)).all():
    raise ValueError(f'power={first_bad(power, ~((power >= 0) & np.isfinite(power)))} is not a '
                     'finite number >= 0; smaller powers would weigh early parameters more')
  return np.sqrt((power + 1) / ((power + 2) ** 2 * (power + 3)))


def power_from_std(std: Any) -> Numbers | np.float64:
  """The largest root of g^3 + 7 g^2 + (16 - s) g + (12 - s), s = std^-2: std_from_power's inverse.

  float64, for a number or an array: 0.05 -> 16.9722, 0.1 -> 6.9372. Raises ValueError where a std
  is outside (0, 1/sqrt 12).
  """
  s = checked_std(std, 'std') ** -2.0
  # With h = g + 2 it is h^3 + h^2 - s h + s, and three real roots for every s >= 12.
  p, q = s + 1 / 3, 4 * s / 3 + 2 / 27
  h = 2 * np.sqrt(p / 3) * np.cos(np.arccos(-1.5 * q / p * np.sqrt(3 / p)) / 3) - 1 / 3
  return np.maximum(h - 2, 0)


def checked_std(std: Any, name: str) -> Numbers | np.float64:
  """std as float64. Raises ValueError naming those outside (0, 1/sqrt 12)."""
  std = np.asarray(std, np.float64)
  # std^-2 must not overflow.
  bad = ~((std > 1e-100) & (std < WIDEST))
  if bad.any():
    raise ValueError(f'{name}={first_bad(std, bad)} is outside (0, {WIDEST:.6f}): the std of a power '
                     'average is relative to the time trained; 0.01 to 0.25 is usual')
  return std


def first_bad(values: Any, bad: Any) -> str:
  """The first of the values where `bad` is true, and how many more there are, for a message."""
  values = values[bad]
  return f'{values[0]:g}' + (f' and {len(values) - 1} more' if len(values) > 1 else '')


def power_rate(power: ArrayLike, examples: ArrayLike, added: ArrayLike) -> Array:
  """1 - (1 - added/examples)^(power + 1): the rate of a power average.

  `examples` counts all examples up to this update (uint32 suffices), `added` the ones since the last
  update, so that the profile does not depend on batch size and interval. Exactly 1 at the first update.
  """
  added, examples = (jnp.asarray(a, float) for a in (added, examples))
  return -jnp.expm1((power + 1) * jnp.log1p(-added / jnp.maximum(examples, 1)))


class PowerState(NamedTuple):
  """The averages {repr of std: tree like params}, and the count of examples so far."""
  examples: Any
  means: Any


class PowerAverage(NamedTuple):
  """Two pure functions: init(params) -> state, update(state, params, examples) -> state."""
  init: Callable
  update: Callable


def power_average(stds: Iterable[float] = (0.05, 0.1)) -> PowerAverage:
  """Power averages for any training loop: an (init, update) pair as in optax.

  `update(state, params, examples)` goes after the optimizer's step, every step or every few, jitted
  or not; examples counts all so far, at most 2^32 - 1 (count in batches beyond that). Averages are
  kept in float32 at least; leaves without one take their newest value, as in `update`. Raises
  ValueError where a std is outside (0, 1/sqrt 12), where params are of other shapes than before, and
  for a count below the last one; under jit these averages are NaN.
  """
  powers = {repr(float(std)): float(power_from_std(std)) for std in stds}

  def start(params):
    return PowerState(jnp.uint32(0), init(params, powers))

  def step(state, params, examples):
    known = not arrays.is_traced((examples, state.examples))
    if known and not int(state.examples) <= int(examples) < 2**32:
      raise ValueError(f'examples={examples}: the last update was at {int(state.examples)}; '
                       'give the count of all examples so far, at most 2^32 - 1')
    examples = jnp.asarray(examples, jnp.uint32)
    added = examples - state.examples
    rates = {name: power_rate(power, examples, added) for name, power in powers.items()}
    return PowerState(examples, update(state.means, params, rates))
  return PowerAverage(start, step)


def is_std(name: str) -> bool:
  """Whether name is the repr of a number in (0, 1/sqrt 12), as names of power averages are."""
  try:
    return repr(float(name)) == name and 0 < float(name) < WIDEST
  except ValueError:
    return False
