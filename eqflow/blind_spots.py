"""What cannot work is refused on the host, before compiling: a grid of times, a range of training.

`times` has these by the same names. An error says what was given, what is allowed and what to do.
"""

from collections.abc import Callable
import functools

import jax
from jax import numpy as jnp
import numpy as np

from eqflow import arrays, outputs, processes
from eqflow.arrays import Grid
from eqflow.densities import Density
from eqflow.outputs import Output
from eqflow.processes import Process

BLIND = 1e-6


def check_grid(times: Grid, *, process: Process, output: Output,
               label_noise: Callable | None = None, diffusion: Callable | None = None,
               last: bool = False, moved_by: str | None = None, otherwise: str | None = None) -> None:
  """Raises ValueError where `output` is blind, or a function not finite, on a sampling grid.

  Blind means |det(state, out)| < 1e-6 |state| |out|, or coordinates that are not finite, at a time
  at which the network is evaluated: every one but the last; with `last` that too, unless it is 0.
  `moved_by` names a solver that needs the process's rate there. `otherwise` is what else to do about
  an output that no network was trained to give. Also refuses a grid that is not finite, turns back,
  or leaves the process. In float64 on the host; silent where process or output is traced.
  """
  given = process, output, label_noise, diffusion
  if arrays.is_traced(times, given):
    return
  times = np.asarray(times, np.float64)
  leaves, structure = jax.tree.flatten(given)
  try:
    if all(isinstance(leaf, (int, float, np.ndarray)) for leaf in leaves):
      _check_once(_frozen(times), structure, tuple(map(_frozen, leaves)), last, moved_by, otherwise)
    else:
      _check_grid(times, *given, last, moved_by, otherwise)
  except jax.errors.TracerArrayConversionError:
    pass  # A function may have closed over a number that is traced.


# Sampling again on a grid that has passed should cost nothing; a refusal is not remembered.
@functools.lru_cache(maxsize=1024)
def _check_once(times, structure, leaves, *how):
  given = jax.tree.unflatten(structure, map(_thawed, leaves))
  _check_grid(_thawed(times), *given, *how)


def _frozen(leaf):
  """What a number or an array is remembered by: a table of a process has too many to be a key."""
  leaf = np.asarray(leaf)
  return leaf.tobytes(), leaf.shape, leaf.dtype.str


def _thawed(frozen):
  content, shape, kind = frozen
  return np.frombuffer(content, kind).reshape(shape)


def _check_grid(times, process, output, label_noise, diffusion, last, moved_by, otherwise):
  if times.ndim != 1 or len(times) < 2 or not np.isfinite(times).all():
    raise ValueError(f'times {times} of shape {times.shape}: a grid is at least two finite times; give '
                     'one such as grids.uniform(10)')
  steps = np.diff(times)
  if (steps > 0).any() and (steps < 0).any():
    falls, rises = int(np.argmax(steps < 0)), int(np.argmax(steps > 0))
    raise ValueError(f'times fall from {times[falls]:.6g} to {times[falls + 1]:.6g} and rise from '
                     f'{times[rises]:.6g} to {times[rises + 1]:.6g}: a grid falls from noise '
                     '(t = 1) to data (t = 0), or rises all the way to invert')
  _check_finite(process, output)
  state = _host(process, times)
  valid = (np.isfinite(state) & (state >= 0)).all(axis=0)
  if not valid.all():
    at = times[~valid][0]
    remedy = ('the numbers bound to it make no schedule, so give finite ones that do' if 0 <= at <= 1
              else 'keep the grid within [0, 1], or sigma >= 0 for edm')
    raise ValueError(f'process {arrays.name_of(process)!r} at t={at:.6g} is not a mix of data and '
                     f'noise (alpha, sigma >= 0): {remedy}')
  _check_direction(process, times, state)
  if otherwise is None:
    _check_pure_noise(process, output)
  evaluated = times if last and times[-1] > 0 else times[:-1]
  sight = _sight(process, output, evaluated)
  if (sight < BLIND).any():
    at = evaluated[np.argmin(sight)]
    raise ValueError(f'output {arrays.name_of(output)!r} cannot give x at t={at:.6g}: '
                     f'{_remedy(process, output, at, times)} or '
                     f'{otherwise or _other_output(process, output, at)}')
  rate = processes.rate if moved_by else None
  for what, function, remedy in (
      (f'noise label {arrays.name_of(label_noise)!r}', label_noise,
       "keep the grid off that time or label the noise by 'time'"),
      (f'diffusion {arrays.name_of(diffusion)!r}', diffusion,
       "keep the grid off that time or choose another, such as 'sigma'"),
      (f'{moved_by} steps by the rate of process {arrays.name_of(process)!r}, which', rate,
       'begin at t > 0, or take ddim')):
    if function is None:
      continue
    value = _host(lambda t: function(process, t), evaluated)
    finite = np.isfinite(value).all(axis=0)
    if not finite.all():
      raise ValueError(f'{what} is not finite at t={evaluated[~finite][0]:.6g}: {remedy}')
    if function is diffusion and (value < 0).any():
      raise ValueError(f'{what} is negative at t={evaluated[(value < 0).any(axis=0)][0]:.6g}: give '
                       'norm >= 0')


def _check_finite(*functions):
  """Raises ValueError for an array bound to one that is not finite, which no time need meet."""
  for function in functions:
    for leaf in jax.tree.leaves(function):
      if np.ndim(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating):
        bad = ~np.isfinite(np.asarray(leaf))
        if bad.any():
          raise ValueError(f'{arrays.name_of(function)!r} is bound to an array of shape {bad.shape}, '
                           f'not finite at {int(np.argmax(bad))}: give finite numbers')


def _check_direction(process, times, state):
  order = np.argsort(times)
  t, angle = times[order], np.arctan2(state[1], state[0])[order]
  # By more than a process that rounds to float32 may.
  falls = angle < np.maximum.accumulate(angle) - BLIND
  if falls.any():
    at = int(np.argmax(falls))
    raise ValueError(f'process {arrays.name_of(process)!r} holds less noise at t={t[at]:.6g} than at t='
                     f'{t[at - 1]:.6g}: noise grows with t here, so give 1 - t, or a table that falls')


def _check_pure_noise(process, output):
  """Raises ValueError where a table ends in pure noise, of which `output` says nothing of x."""
  if not _is_table(process):
    return
  alpha, sigma = _host(process, np.ones(1))
  if alpha[0] < BLIND * sigma[0] and _sight(process, output, np.ones(1))[0] < BLIND:
    raise ValueError(f'output {arrays.name_of(output)!r} cannot give x at t=1, where this table is '
                     "pure noise: train 'v' or 'x', or take a table without zero terminal SNR")


def _is_table(process):
  bound = getattr(process, 'keywords', {})
  return getattr(process, 'func', None) is processes.discrete or (
      'process' in bound and _is_table(bound['process']))


def _host(function, times):
  with jax.ensure_compile_time_eval(), jax.enable_x64(True):
    values = function(jnp.asarray(times, jnp.float64))
    return np.stack([np.broadcast_to(np.asarray(a), times.shape) for a in jax.tree.leaves(values)])


def check_training(density: Density, *, process: Process, output: Output, space: Output | None = None,
                   weight: Callable | None = None, label_noise: Callable | None = None) -> None:
  """Raises ValueError where a loss in `space` is unbounded at an end of the density's range.

  That is where `output` is blind (its gain into `space` explodes) or its own coordinates exceed
  1e6, at the outermost times that can be drawn; and where `weight` or `label_noise`, if given, is
  not finite there. Computed as `check_grid` is, and silent as it is.
  """
  if arrays.is_traced(density, process, output, space, weight, label_noise):
    return
  _check_finite(process, output)
  ends = _host(density.quantile, np.array([2.0**-24, 1 - 2.0**-24]))[0]
  state = _host(process, ends)
  if not ((state >= 0) & np.isfinite(state)).all():
    raise ValueError(f'the density draws t from {ends[0]:.3g} to {ends[1]:.3g}, where process '
                     f'{arrays.name_of(process)!r} is not a mix of data and noise (alpha, sigma >= 0)')
  _check_direction(process, ends, state)
  _check_pure_noise(process, output)
  size = np.abs(_host(lambda t: output(process, t), ends)).max(axis=0)
  blind = ~(size < 1 / BLIND)
  if space is not None and space is not output:
    blind |= _sight(process, output, ends) < BLIND
    explodes = ~(np.abs(_host(lambda t: space(process, t), ends)).max(axis=0) < 1 / BLIND)
    if explodes.any():
      raise ValueError(f'the space {arrays.name_of(space)!r} is not bounded at t='
                       f'{ends[explodes][0]:.3g}, which the density can draw: keep training off it '
                       "with the density 'uniform_on', such as (0.001, 0.999), or choose another")
  if blind.any():
    raise ValueError(
        f'output {arrays.name_of(output)!r} has no bounded loss at t={ends[blind][0]:.3g}, which '
        'the density can draw: keep training off it with the density \'uniform_on\', such as '
        '(0.001, 0.999), or train \'v\'')
  for kind, function in (('weight', weight), ('noise label', label_noise)):
    value = 0 if function is None else _host(lambda t: function(process, t), ends)[0]
    if not np.isfinite(value).all():
      raise ValueError(
          f'{kind} {arrays.name_of(function)!r} is not finite at t={ends[~np.isfinite(value)][0]:.3g}, '
          'which the density can draw: keep training off it, or choose another')


def _sight(process, output, times):
  """|det(state, out)|/(|state| |out|) in [0, 1]; 0 where out is zero or not finite."""
  p = _host(process, times)
  q = _host(lambda t: output(process, t), times)
  with np.errstate(invalid='ignore', divide='ignore'):
    area = np.abs(p[0] * q[1] - p[1] * q[0]) / (np.hypot(*p) * np.hypot(*q))
  return np.where(np.isfinite(q).all(axis=0), np.nan_to_num(area, nan=0.0), 0.0)


def _other_output(process, output, blind):
  # No other output of a network that is carried here to times at which it has no process.
  carried = getattr(output, 'func', None) is outputs.transported
  lost = carried and np.isnan(_host(lambda t: output(process, t), np.array([blind]))).any()
  return 'give a process_a that is as noisy there' if lost else "train 'v'"


def _remedy(process, output, blind, times):
  """The nearest time to `blind`, towards the middle of the grid, at which `output` still sees."""
  seeing = times[_sight(process, output, times) >= BLIND]
  middle = seeing[np.argmin(np.abs(seeing - blind))] if len(seeing) else blind / 2
  if _sight(process, output, np.array([middle]))[0] < BLIND:
    return 'choose a grid of other times'
  limit = blind
  for _ in range(60):
    half = (limit + middle) / 2
    seen = _sight(process, output, np.array([half]))[0] >= BLIND
    limit, middle = (limit, half) if seen else (half, middle)
  # Rounded towards the times that see, so that the number printed is one that passes.
  falling = times[0] >= times[-1]
  if middle < blind:
    return f'{"start" if falling else "end"} the grid at t<={_rounded(middle, 6, np.floor):.6g}'
  return f'{"end" if falling else "start"} the grid at t>={_rounded(middle, 2, np.ceil):.2g}'


def _rounded(value, digits, towards):
  unit = 10.0 ** (np.floor(np.log10(value)) - digits + 1)
  return towards(value / unit) * unit
