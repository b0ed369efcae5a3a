"""What a sampling grid or a training range must not touch, checked on the host before compiling.

An output is blind where it is parallel to the state: det(state, output) = 0, so that z and y do not
determine x and eps. A solver builds its `check(times)` from `check_grid` and the `needs_*` below. All
of them compute in float64, raise ValueError with the time to use instead, and do nothing where a
number is traced.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax import numpy as jnp
import numpy as np

from eqflow import arrays, outputs, processes
from eqflow.arrays import Grid
from eqflow.densities import Density
from eqflow.outputs import Output
from eqflow.processes import Process

BLIND = 1e-6


def any_grid(times: Grid) -> None:
  """Raises ValueError unless `times` are two or more finite numbers: a solver without requirements."""
  if not arrays.is_traced(times):
    _check_times(np.asarray(times, np.float64))


def check_grid(times: Grid, *, process: Process, output: Output, last: bool = False) -> None:
  """Raises ValueError unless `times` is a grid of the process on which `output` is never blind.

  A grid has two or more finite times that fall, or that all rise, with alpha, sigma >= 0 and noise that
  grows with t. Blind means |det(state, out)| < 1e-6 |state| |out|, or an `out` that is not finite, at a
  time at which the network is evaluated: not the last time, unless `last` is set and it is not 0.
  """
  _on_host(_check_grid, times, process, output, last=last)


def needs_velocity(times: Grid, *, process: Process, name: str, last: bool = False) -> None:
  """Raises ValueError where d process/dt is not finite at a time of evaluation (as in `check_grid`)."""
  _on_host(_check_velocity, times, process, name=name, last=last)


def needs_along(times: Grid, *, process: Process, along: Output, name: str, remedy: str) -> None:
  """Raises ValueError where `along`, the vector that a solver steps along, is parallel to the state.

  `remedy` is what to do other than move the grid: no network predicts `along`.
  """
  _on_host(_check_along, times, process, along, name=name, remedy=remedy)


def needs_x(times: Grid, *, process: Process, name: str) -> None:
  """`needs_along` x: a grid may end at data, but not start there."""
  needs_along(times, process=process, along=outputs.x, name=name, remedy='use ddim or heun')


def needs_diffusion(times: Grid, *, process: Process, diffusion: Callable) -> None:
  """Raises ValueError where diffusion(process, t) is negative or not finite at a time of evaluation."""
  _on_host(_check_diffusion, times, process, diffusion)


def needs_conditioning(times: Grid, *, process: Process, c_noise: Callable) -> None:
  """Raises ValueError where the noise conditioning is not finite at a time of evaluation."""
  _on_host(_check_conditioning, times, process, c_noise)


def needs_num_steps(times: Grid, *, num_steps: Any, name: str, exact: bool = False) -> None:
  """Raises ValueError where the grid has more steps of nonzero length than `num_steps` (None: any).

  A larger num_steps is an end that is never reached. With `exact` it must be the grid's own number,
  with or without the steps that repeat a time.
  """
  if num_steps is None or arrays.is_traced(times, num_steps):
    return
  moving = int((np.diff(np.asarray(times)) != 0).sum())
  if num_steps < moving or exact and num_steps not in (moving, len(times) - 1):
    raise ValueError(f'num_steps={num_steps:g} of {name} is not the {moving} steps of the grid: use '
                     f'num_steps={moving}{"" if exact else " or None"}')


def needs_falling(times: Grid, *, name: str) -> None:
  """Raises ValueError where the times rise: a stochastic solver integrates towards data only."""
  if not arrays.is_traced(times) and (np.diff(np.asarray(times)) > 0).any():
    raise ValueError(f'{name} is stochastic and integrates towards data only, but the times rise: '
                     'invert with a deterministic solver, such as ddim or heun')


def _on_host(check, times, *functions, **how):
  """check(times, *functions, **how) in numpy float64; nothing where a number is traced."""
  functions = tuple(map(arrays.pytree, functions))
  if arrays.is_traced(times, functions):
    return
  times = np.asarray(times, np.float64)
  leaves, structure = jax.tree.flatten(functions)
  try:
    if all(isinstance(leaf, (int, float, np.ndarray)) for leaf in leaves):
      _check_once(check, _frozen(times), structure, tuple(map(_frozen, leaves)), **how)
    else:
      check(times, *functions, **how)
  except jax.errors.TracerArrayConversionError:
    pass  # A function may have closed over a number that is traced.


# Sampling again on a grid that has passed should cost nothing; a rejection is not cached.
@functools.lru_cache(maxsize=1024)
def _check_once(check, times, structure, leaves, **how):
  check(_thawed(times), *jax.tree.unflatten(structure, map(_thawed, leaves)), **how)


def _frozen(leaf):
  """A hashable copy of a number or an array."""
  leaf = np.asarray(leaf)
  return leaf.tobytes(), leaf.shape, leaf.dtype.str


def _thawed(frozen):
  content, shape, kind = frozen
  return np.frombuffer(content, kind).reshape(shape)


def _check_times(times):
  if times.ndim != 1 or len(times) < 2 or not np.isfinite(times).all():
    raise ValueError(f'times={times} of shape {times.shape}: a grid has two or more finite times, as '
                     'grids.uniform(10) has')


def _check_grid(times, process, output, *, last):
  _check_times(times)
  steps = np.diff(times)
  if (steps > 0).any() and (steps < 0).any():
    falls, rises = int(np.argmax(steps < 0)), int(np.argmax(steps > 0))
    raise ValueError(f'times fall from {times[falls]:.6g} to {times[falls + 1]:.6g} and rise from '
                     f'{times[rises]:.6g} to {times[rises + 1]:.6g}: a grid falls from noise '
                     '(t = 1) to data (t = 0), or rises all the way to invert')
  _check_process(process, output, times)
  _check_pure_noise(process, output)
  _check_sight(f'output {arrays.name_of(output)!r} is blind', process, output, times,
               _evaluated(times, last), lambda at: _other_output(process, output, at))


def _evaluated(times, last=False):
  """The times at which a solver evaluates the network: not at s = 0, nor again where one repeats."""
  times = times[np.append(True, np.diff(times) != 0)]
  return times if last and times[-1] > 0 else times[:-1]


def _check_process(process, output, times):
  _check_finite(process, output)
  state = _host(process, times)
  valid = (np.isfinite(state) & (state >= 0)).all(axis=0)
  if not valid.all():
    at = times[~valid][0]
    remedy = ('its numbers make no schedule; give finite ones that do' if 0 <= at <= 1
              else 'keep the grid within [0, 1], or sigma >= 0 for edm')
    raise ValueError(f'process {arrays.name_of(process)!r} at t={at:.6g} is not a mix of data and '
                     f'noise (alpha, sigma >= 0): {remedy}')
  _check_direction(process, times, state)


def _check_sight(what, process, vector, times, evaluated, other):
  """Raises ValueError where `vector` is blind; other(t) is what to do other than move the grid."""
  sight = _sight(process, vector, evaluated)
  if (sight < BLIND).any():
    at = evaluated[np.argmin(sight)]
    raise ValueError(f'{what} at t={at:.6g}: {_remedy(process, vector, at, times)} or {other(at)}')


def _check_along(times, process, along, *, name, remedy):
  _check_sight(f'{name} steps along {arrays.name_of(along)!r}, which is blind', process, along, times,
               _evaluated(times), lambda at: remedy)


def _check_velocity(times, process, *, name, last):
  _check_values(
      _host(lambda t: processes.rate(process, t), _evaluated(times, last)), _evaluated(times, last),
      f'{name} needs the velocity of process {arrays.name_of(process)!r}, which',
      'begin at t > 0 or use ddim')


def _check_diffusion(times, process, diffusion):
  evaluated, name = _evaluated(times), f'diffusion {arrays.name_of(diffusion)!r}'
  value = _host(lambda t: diffusion(process, t), evaluated)
  _check_values(value, evaluated, name, "keep the grid off that time or use another, such as 'sigma'")
  negative = (value < 0).any(axis=0)
  if negative.any():
    raise ValueError(f'{name} is negative at t={evaluated[negative][0]:.6g}: give norm >= 0')


def _check_conditioning(times, process, c_noise):
  evaluated = _evaluated(times)
  _check_values(_host(lambda t: c_noise(process, t), evaluated), evaluated,
                f'noise conditioning {arrays.name_of(c_noise)!r}',
                "keep the grid off that time or condition on 'time'")


def _check_values(values, times, what, remedy):
  """Raises ValueError where values [k, n] are not finite at one of the times [n]."""
  finite = np.isfinite(values).all(axis=0)
  if not finite.all():
    raise ValueError(f'{what} is not finite at t={times[~finite][0]:.6g}: {remedy}')


def _check_finite(*functions):
  """Raises ValueError for a bound array that is not finite, even where the grid never reads it."""
  for function in functions:
    for leaf in jax.tree.leaves(function):
      if np.ndim(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating):
        bad = ~np.isfinite(np.asarray(leaf))
        if bad.any():
          raise ValueError(f'{arrays.name_of(function)!r} binds an array of shape {bad.shape} that is '
                           f'not finite at {int(np.argmax(bad))}: give finite numbers')


def _check_direction(process, times, state):
  order = np.argsort(times)
  t, angle = times[order], np.arctan2(state[1], state[0])[order]
  # By more than a process that rounds to float32 may.
  falls = angle < np.maximum.accumulate(angle) - BLIND
  if falls.any():
    at = int(np.argmax(falls))
    raise ValueError(f'process {arrays.name_of(process)!r} has less noise at t={t[at]:.6g} than at t='
                     f'{t[at - 1]:.6g}: noise grows with t here, so give 1 - t, or a table that falls')


def _check_pure_noise(process, output):
  """Raises ValueError where a table ends in pure noise and `output` is blind there."""
  if not _is_table(process):
    return
  alpha, sigma = _host(process, np.ones(1))
  if alpha[0] < BLIND * sigma[0] and _sight(process, output, np.ones(1))[0] < BLIND:
    raise ValueError(f'output {arrays.name_of(output)!r} is blind at t=1, where this table is pure '
                     "noise: train 'v' or 'x', or use a table without zero terminal SNR")


def _is_table(process):
  bound = getattr(process, 'keywords', {})
  return getattr(process, 'func', None) is processes.discrete or (
      'process' in bound and _is_table(bound['process']))


def _host(function, times):
  """function(times) as float64 [k, n], one row for each of the k leaves that it returns."""
  with jax.ensure_compile_time_eval(), jax.enable_x64(True):
    values = function(jnp.asarray(times, jnp.float64))
    return np.stack([np.broadcast_to(np.asarray(a), times.shape) for a in jax.tree.leaves(values)])


def check_training(density: Density, *, process: Process, output: Output, space: Output | None = None,
                   weight: Callable | None = None, c_noise: Callable | None = None) -> None:
  """Raises ValueError where a loss in `space` is unbounded at an end of the density's range.

  That is where `output` is blind (its gain into `space` is infinite), where `output` or `space` itself
  exceeds 1e6, or where `weight` or `c_noise` is not finite, at the outermost times of the density.
  """
  if arrays.is_traced(density, process, output, space, weight, c_noise):
    return
  _check_finite(process, output)
  ends = _host(density.quantile, np.array([2.0**-24, 1 - 2.0**-24]))[0]
  state = _host(process, ends)
  if not ((state >= 0) & np.isfinite(state)).all():
    raise ValueError(f'the density samples t from {ends[0]:.3g} to {ends[1]:.3g}, where process '
                     f'{arrays.name_of(process)!r} is not a mix of data and noise (alpha, sigma >= 0): '
                     "choose another density, such as 'uniform'")
  _check_direction(process, ends, state)
  _check_pure_noise(process, output)
  large = lambda vector: ~(np.abs(_host(lambda t: vector(process, t), ends)).max(axis=0) < 1 / BLIND)
  blind = large(output)
  if space is not None and space is not output:
    blind |= _sight(process, output, ends) < BLIND
    if large(space).any():
      raise ValueError(f'the space {arrays.name_of(space)!r} is unbounded at '
                       f't={ends[large(space)][0]:.3g}, which the density samples: keep training off '
                       "it with the density 'uniform_on', such as (0.001, 0.999), or use another space")
  if blind.any():
    raise ValueError(f'output {arrays.name_of(output)!r} has no bounded loss at t={ends[blind][0]:.3g},'
                     " which the density samples: keep training off it with the density 'uniform_on', "
                     "such as (0.001, 0.999), or train 'v'")
  for kind, function in (('weight', weight), ('noise conditioning', c_noise)):
    if function is not None:
      value = _host(lambda t: function(process, t), ends)
      _check_values(value, ends, f'{kind} {arrays.name_of(function)!r}',
                    'the density samples that time; keep training off it, or choose another')


def _sight(process, output, times):
  """|det(state, out)|/(|state| |out|) in [0, 1]; 0 where out is zero or not finite."""
  p = _host(process, times)
  q = _host(lambda t: output(process, t), times)
  with np.errstate(invalid='ignore', divide='ignore'):
    area = np.abs(p[0] * q[1] - p[1] * q[0]) / (np.hypot(*p) * np.hypot(*q))
  return np.where(np.isfinite(q).all(axis=0), np.nan_to_num(area, nan=0.0), 0.0)


def _other_output(process, output, blind):
  # No output helps where the network's own process has no time with as much noise.
  moved = getattr(output, 'func', None) is outputs.transported
  lost = moved and np.isnan(_host(lambda t: output(process, t), np.array([blind]))).any()
  return 'give a process_a that is as noisy there' if lost else "train 'v'"


def _remedy(process, output, blind, times):
  """What to do about the grid: its time nearest to `blind` at which `output` is not blind."""
  seeing = times[_sight(process, output, times) >= BLIND]
  middle = seeing[np.argmin(np.abs(seeing - blind))] if len(seeing) else blind / 2
  if _sight(process, output, np.array([middle]))[0] < BLIND:
    return 'choose a grid of other times'
  limit = blind
  # 129 sections at a time, since each call traces the output.
  for _ in range(9):
    between = np.linspace(limit, middle, 130)
    first = np.argmax(_sight(process, output, between) >= BLIND)
    limit, middle = between[first - 1], between[first]
  # Rounded away from the blind spot, so that the number printed is accepted.
  falling = times[0] >= times[-1]
  if middle < blind:
    return f'{"start" if falling else "end"} the grid at t<={_rounded(middle, 6, np.floor):.6g}'
  return f'{"end" if falling else "start"} the grid at t>={_rounded(middle, 2, np.ceil):.2g}'


def _rounded(value, digits, towards):
  unit = 10.0 ** (np.floor(np.log10(value)) - digits + 1)
  return towards(value / unit) * unit
