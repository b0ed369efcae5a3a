"""Solver = (init, step), and the one loop that runs it.

init(z) -> memory; step(predict, z, memory, t, s, keys) -> (z, memory) moves from t to the less
noisy s. t and s are scalars, keys [b] or None. Both are Partials of module-level functions, the
step binding `process` and `output` by those names.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Int, Num, PyTree
import numpy as np

from eqflow import arrays, blind_spots, outputs
from eqflow.arrays import Data, Grid, Keys
from eqflow.fields import Predict
from eqflow.outputs import Output
from eqflow.processes import Process


class Solver(NamedTuple):
  """Two pure functions, as an optax transform."""
  init: Callable[[Data], Any]
  step: Callable[..., tuple[Data, Any]]


def no_memory(z: Data) -> tuple:
  """The memory of a solver that remembers nothing."""
  return ()


def assemble(step: Callable, process: Process, output: Output, *, init: Callable = no_memory,
             **bound: Any) -> Solver:
  """Solver(init, step) with process, output and whatever else is bound to a module-level step.

  Attributes of the step say what `sample` must know: `draws`, it needs keys; `looks_ahead`, it
  evaluates the network at s too; `counts`, its memory holds how many `evaluations` it made;
  `moves_by_rate`, it needs the process's velocity; `holds_x` and `goes_along`, that its caller has
  not chosen what it steps along; `shares_churn`, that it divides by num_steps.
  """
  return Solver(arrays.pytree(init), Partial(
      step, process=arrays.pytree(process), output=arrays.pytree(output), **bound))


def sample(solver: Solver, predict: Predict, z: Data, times: Grid,
           keys: Keys | None = None) -> Data:
  """z carried from times[0] to times[-1], one step a pair of times: a sample [b, ...].

  z is the state at times[0] (noise, scaled as the process asks). keys [b] feed solvers that draw:
  step i uses fold_in(keys, i). One compiled scan; solvers, networks and times of the same shapes
  share it. A grid may rise, from data at t > 0 to noise, where the solver draws none: that inverts
  a sample, best with heun or adaptive, whose steps are the same both ways to a higher order.
  Raises ValueError, before compiling, where the solver's output is blind on the grid or a solver
  that draws has no keys.
  """
  return run(solver, predict, z, times, keys)[0]


def run(solver: Solver, predict: Predict, z: Data, times: Grid,
        keys: Keys | None = None) -> tuple[Data, Any]:
  """(z, memory) at times[-1]: what `sample` returns, and what the solver remembers of the way."""
  return _run(solver, predict, z, times, keys, path=False)


def sample_path(solver: Solver, predict: Predict, z: Data, times: Grid,
                keys: Keys | None = None) -> PyTree[Num[Array, 'n b ...']]:
  """Every state of `sample`, [n, b, ...] for n times, the first being z. Raises as `sample` does."""
  return _run(solver, predict, z, times, keys, path=True)


def evaluations(solver: Solver, times: Grid, memory: Any = None) -> int | Int[Array, 'b']:
  """How often `sample` calls predict on this grid: once a step, and again at s > 0 to look ahead.

  A solver that chooses its steps counts them per sample, [b], in the memory that `run` returns:
  give it. Raises ValueError where it is needed and missing.
  """
  if getattr(solver.step.func, 'counts', False):
    if memory is None:
      raise ValueError(f'{arrays.name_of(solver.step)} chooses its steps as it goes: call run(...) for '
                       '(z, memory), and give evaluations(solver, times, memory)')
    return memory.evaluations
  times = np.asarray(times)
  return len(times) - 1 + _of(solver, 'looks_ahead') * int((times[1:] > 0).sum())


def contributions(solver: Solver, times: Grid) -> np.ndarray:
  """h_t = d sample/d y_t, the weight of the prediction at each time in the sample; float64 [n].

  For solvers that are linear in what the network predicts, whatever it predicts:
  sample = sum_t h_t y_t + what comes of the first state and of the noise drawn.
  """
  with jax.enable_x64(True):
    times = jnp.asarray(np.asarray(times, np.float64))
    keys = jax.random.split(jax.random.key(0), 1)
    def end(y):
      predict = Partial(_looked_up, times=times, y=y)
      return sample(solver, predict, jnp.zeros((1, 1)), times, keys)[0, 0]
    return np.asarray(jax.grad(end)(jnp.zeros(len(times))))


def _looked_up(z, t, *, times, y):
  return y[jnp.argmin(jnp.abs(times - t[0]))] * jnp.ones_like(z)


def _run(solver, predict, z, times, keys, *, path):
  solver = Solver(*map(arrays.pytree, solver))
  check(solver, times)
  if keys is None and _of(solver, 'draws'):
    raise ValueError(f'{_name(solver)} draws noise: give sample(..., keys=...) one key per example')
  times = jnp.asarray(times)
  if not jnp.issubdtype(times.dtype, jnp.floating):
    times = times.astype(jnp.result_type(float))
  z = jax.tree.map(jnp.asarray, z)
  return _scan(solver, arrays.pytree(predict), z, times, keys, path=path)


def check(solver: Solver, times: Grid) -> None:
  """Raises ValueError where the solver cannot go along the grid: as `times.check_grid`, and rising."""
  bound = solver.step.keywords
  if 'process' in bound and 'output' in bound:
    blind_spots.check_grid(times, process=bound['process'], output=bound['output'],
                     diffusion=bound.get('diffusion'), last=_of(solver, 'looks_ahead'),
                     moved_by=_name(solver) if _of(solver, 'moves_by_rate') else None)
    if bound.get('along') is not None:
      name, along = _name(solver), arrays.name_of(bound['along'])
      blind_spots.check_grid(
          times, process=bound['process'], output=bound['along'],
          otherwise=f'take heun: each step of {name} goes along {along}' if _of(solver, 'goes_along')
          else f"give {name.removesuffix('_along')} another `along`, or none")
    if _of(solver, 'holds_x') and not arrays.is_traced(times):
      times = np.asarray(times)
      moving = np.append(times[:-1][np.diff(times) != 0], times[-1:])
      if len(moving) > 1:
        blind_spots.check_grid(moving, process=bound['process'], output=outputs.x,
                         otherwise=f'take ddim or heun: each step of {_name(solver)} holds x')
    _check_num_steps(solver, times, bound.get('num_steps'))
  schedule = bound.get('schedule')
  if schedule is not None and not getattr(schedule.func, 'told_nothing', False):
    raise ValueError(f'{_name(solver)} has step sizes by {arrays.name_of(schedule)!r}, which is told '
                     'the number of the step and no time: use descent.descend')
  if _of(solver, 'draws') and not arrays.is_traced(times) and (np.diff(np.asarray(times)) > 0).any():
    raise ValueError(f'{_name(solver)} draws noise, so it steps towards data only, but the times '
                     'rise: invert with a solver that draws none, such as ddim or heun')


def _check_num_steps(solver, times, num_steps):
  if num_steps is None or arrays.is_traced(times, num_steps):
    return
  moving = int((np.diff(np.asarray(times)) != 0).sum())
  # More are an end that is never reached; a step that repeats a time counts where it adds noise too.
  exact = _of(solver, 'shares_churn') and num_steps not in (moving, len(times) - 1)
  if exact or num_steps < moving:
    raise ValueError(f'{_name(solver)} of num_steps={num_steps:g}, but the grid has {moving} steps: '
                     f'give that number{"" if _of(solver, "shares_churn") else ", or None"}')


def _of(solver, attribute):
  return getattr(solver.step.func, attribute, False)


def _name(solver):
  return arrays.name_of(solver.step).strip('_').removesuffix('_step')


@jax.jit(static_argnames='path')
def _scan(solver, predict, z, times, keys, *, path):
  b = arrays.batch_size(z)
  at_all = lambda z, t: predict(z, jnp.broadcast_to(t, (b,)))

  def step(carry, interval):
    z, memory = carry
    i, t, s = interval
    z, memory = solver.step(at_all, z, memory, t, s, None if keys is None else arrays.fold(keys, i))
    return (z, memory), z if path else None

  intervals = jnp.arange(len(times) - 1), times[:-1], times[1:]
  end, states = jax.lax.scan(step, (z, solver.init(z)), intervals)
  if not path:
    return end
  return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), z, states)
