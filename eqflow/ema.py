"""Averages of the parameters along training, as extra parameter trees: {name: tree}.

One rule, mean <- mean + rate (params - mean), with a rate for each name at each step. A power average
of relative width std weighs the parameters at time t by (power + 1)/T (t/T)^power
[Karras+ 2312.02696, section 3]; `posthoc_ema` makes averages of other widths from its snapshots.
"""

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
  """Every average starts at the parameters themselves, in float32 where they are of less.

  A thousandth of what is new rounds away in bfloat16: such an average would stand still.
  """
  def kept(a):
    floating = jnp.issubdtype(jnp.result_type(a), jnp.floating)
    return jnp.array(a, jnp.result_type(a, jnp.float32) if floating else None)
  return {name: jax.tree.map(kept, params) for name in names}


def update(emas: Mapping[str, PyTree], params: PyTree,
           keep: Mapping[str, ArrayLike]) -> dict[str, PyTree]:
  """mean + (1 - keep) (params - mean), for each average with its own keep in [0, 1]."""
  return move(emas, params, {name: 1 - keep[name] for name in emas})


def move(emas: Mapping[str, PyTree], params: PyTree,
         share: Mapping[str, ArrayLike]) -> dict[str, PyTree]:
  """mean + share (params - mean), for each average with its own share in [0, 1].

  In float32 a share of 1e-6 is known to 1e-13; taken from 1 - share, to 6e-8, or 6 % of it. Raises
  ValueError where params are of other shapes than the averages.
  """
  def average(mean, share):
    arrays.check_alike('params', params, 'an average of them', mean)
    return jax.tree.map(lambda m, p: m + (share * (p - m)).astype(m.dtype), mean, params)
  return {name: average(mean, share[name]) for name, mean in emas.items()}


def warmed(decay: ArrayLike, num_updates: Int[ArrayLike, '']) -> Float[Array, '']:
  """min(decay, (1 + n)/(10 + n)): a decay that forgets the initial parameters soon.

  Without it an average of decay 0.999 still holds 5 % of its start after 3,000 updates.
  """
  return jnp.minimum(decay, (1 + num_updates) / (10 + num_updates))


def std_from_power(power: Any) -> Numbers | np.float64:
  """sqrt((power + 1)/((power + 2)^2 (power + 3))): the std of t/T under (power + 1)(t/T)^power.

  float64, for a number or an array. Raises ValueError where a power is negative.
  """
  power = np.asarray(power, np.float64)
  if not ((power >= 0) & np.isfinite(power)).all():
    raise ValueError(f'power={_shown(power, ~((power >= 0) & np.isfinite(power)))} is no power of '
                     'an average: give finite powers >= 0, which weigh later parameters no less')
  return np.sqrt((power + 1) / ((power + 2) ** 2 * (power + 3)))


def power_from_std(std: Any) -> Numbers | np.float64:
  """The largest root of g^3 + 7 g^2 + (16 - s) g + (12 - s), s = std^-2: std_from_power's inverse.

  float64, for a number or an array: 0.05 -> 16.9722, 0.1 -> 6.9372. Raises ValueError where a std
  is outside (0, 1/sqrt 12).
  """
  s = _checked_std(std, 'std') ** -2.0
  # With h = g + 2 it is h^3 + h^2 - s h + s, and three real roots for every s >= 12.
  p, q = s + 1 / 3, 4 * s / 3 + 2 / 27
  h = 2 * np.sqrt(p / 3) * np.cos(np.arccos(-1.5 * q / p * np.sqrt(3 / p)) / 3) - 1 / 3
  return np.maximum(h - 2, 0)


def _checked_std(std, name):
  """std as float64. Raises ValueError naming those outside (0, 1/sqrt 12)."""
  std = np.asarray(std, np.float64)
  # The square of what is smaller has no inverse.
  bad = ~((std > 1e-100) & (std < WIDEST))
  if bad.any():
    raise ValueError(f'{name}={_shown(std, bad)} is outside (0, {WIDEST:.6f}): the std of a power '
                     'average is relative to the time trained; 0.01 to 0.25 is usual')
  return std


def _shown(values, bad):
  """The first of the bad values, and how many more there are."""
  values = values[bad]
  return f'{values[0]:g}' + (f' and {len(values) - 1} more' if len(values) > 1 else '')


def power_share(power: ArrayLike, examples: ArrayLike, added: ArrayLike) -> Array:
  """1 - (1 - added/examples)^(power + 1): what a power average takes of the new parameters.

  `examples` counts all up to and including this update (uint32 will do), `added` those since the
  last one, so that batch size and interval leave the profile as it is. Exactly 1 at the first.
  """
  added, examples = (jnp.asarray(a, float) for a in (added, examples))
  return -jnp.expm1((power + 1) * jnp.log1p(-added / jnp.maximum(examples, 1)))


class PowerState(NamedTuple):
  """The averages {repr of std: tree like params} and the count of examples they stand at."""
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
  kept in float32 at least. Raises ValueError where a std is outside (0, 1/sqrt 12), where params are
  of other shapes than before, and for a count below the last one; under jit such averages are NaN.
  """
  powers = {repr(float(std)): float(power_from_std(std)) for std in stds}

  def start(params):
    return PowerState(jnp.uint32(0), init(params, powers))

  def step(state, params, examples):
    known = not arrays.is_traced((examples, state.examples))
    if known and not int(state.examples) <= int(examples) < 2**32:
      raise ValueError(f'examples={examples}: the averages stand at {int(state.examples)} examples; '
                       'count all from the first on, at most 2^32 - 1')
    examples = jnp.asarray(examples, jnp.uint32)
    added = examples - state.examples
    share = {name: power_share(power, examples, added) for name, power in powers.items()}
    return PowerState(examples, move(state.means, params, share))
  return PowerAverage(start, step)


def is_std(name: str) -> bool:
  """Whether a power average may be called so: the repr of a number in (0, 1/sqrt 12)."""
  try:
    return repr(float(name)) == name and 0 < float(name) < WIDEST
  except ValueError:
    return False
