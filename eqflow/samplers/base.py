"""Solver(init, step, check, traits): a way to integrate over time, and the loop that runs it.

    init(z) -> state
    step(predict, z, state, t, s, keys) -> (z, state)    from t to the less noisy s
    check(times)                                         raises on the host for a grid it cannot follow

t and s are scalars, keys [b] or None. The functions bind their numbers with one
`jax.tree_util.Partial`, so that a solver is a valid jit argument and new numbers do not recompile.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Int, Num, PyTree
import numpy as np

from eqflow import arrays, blind_spots
from eqflow.arrays import Data, Grid, Keys
from eqflow.fields import Predict
from eqflow.outputs import Output
from eqflow.processes import Process


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Traits:
  """Static facts about a method.

  `name` is for messages. A stochastic method needs keys; a stochastic solver integrates towards data
  only. `stages` is the number of network evaluations of a step. A step that evaluates at s must not do
  so at s = 0, where the output may be blind: skip it by `lax.cond(s > 0, ...)`. None: the number
  depends on the sample or on more than s, and the state counts it as `evaluations` [b].
  """
  name: str
  stochastic: bool = False
  stages: int | None = 1


class Solver(NamedTuple):
  """Pure functions, like an optax transform. A solver of your own needs only `init` and `step`."""
  init: Callable
  step: Callable
  check: Any = None   # a function, or None: any grid of finite times
  traits: Traits = Traits('custom')


def no_state(z: Data) -> tuple:
  """(): the state of a solver that keeps nothing between steps."""
  return ()


def plane(process: Process, output: Output) -> dict[str, Partial]:
  """{process, output} as pytrees: what a step and its check bind. Raises TypeError for others."""
  arrays.check_functions(process=process, output=output)
  return dict(process=arrays.pytree(process), output=arrays.pytree(output))


def check_velocity(times: Grid, *, process: Process, output: Output, traits: Traits) -> None:
  """The check of a solver that steps by the velocity, at s too unless it has one stage."""
  last = traits.stages != 1
  blind_spots.check_grid(times, process=process, output=output, last=last)
  blind_spots.needs_velocity(times, process=process, name=traits.name, last=last)


def check_num_steps(num_steps: Any) -> None:
  """Raises ValueError unless a solver's num_steps is 1 or more, or None."""
  if num_steps is not None:
    arrays.check_scalars(num_steps=num_steps)
  if num_steps is not None and not arrays.is_traced(num_steps) and not num_steps >= 1:
    raise ValueError(f'num_steps={num_steps}: give the number of steps of the grid, 1 or more')


def sample(solver: Solver, predict: Predict, z: Data, times: Grid,
           keys: Keys | None = None) -> Data:
  """z [b, ...] integrated from times[0] to times[-1], one step for each pair of times.

  z is the state at times[0]: noise, scaled by the process's sigma there. A stochastic solver needs keys
  [b]; step i uses fold_in(keys, i). A time that repeats is skipped: it calls no predict, and changes
  neither the sample nor its derivatives. Times below float32 are promoted to it. One compiled scan,
  shared by solvers, networks and times of the same shapes. Times that rise, from t > 0 to noise, invert
  a sample; heun and adaptive are best, since their steps are reversible to a higher order. Raises
  ValueError, before compiling, if the solver cannot follow the grid or its keys are missing.
  """
  return _run(solver, predict, z, times, keys, path=False)[0]


def run(solver: Solver, predict: Predict, z: Data, times: Grid,
        keys: Keys | None = None) -> tuple[Data, Any]:
  """(z, state) at times[-1]: what `sample` returns, and the solver's last state."""
  return _run(solver, predict, z, times, keys, path=False)


def sample_path(solver: Solver, predict: Predict, z: Data, times: Grid,
                keys: Keys | None = None) -> PyTree[Num[Array, 'n b ...']]:
  """z at each of the n times of `sample`, [n, b, ...]; the first is z itself. Raises as `sample`."""
  return _run(solver, predict, z, times, keys, path=True)


def evaluations(solver: Solver, times: Grid, state: Any = None) -> int | Int[Array, 'b']:
  """How often `sample` calls predict on this grid.

  The calls of a step, and of a step to s = 0, are counted by tracing `solver.step`; a time that repeats
  costs none. A solver with steps that differ otherwise has `stages=None` and counts for itself, per
  sample [b]: pass the state that `run` returns. Raises ValueError where it is needed and missing.
  """
  if solver.traits.stages is None:
    if state is None:
      raise ValueError(f'{solver.traits.name} chooses its steps: call `run` for (z, state), and pass '
                       'the state to `evaluations`')
    return state.evaluations
  with jax.ensure_compile_time_eval():
    times = arrays.wide(times)
    moving = times[1:] != times[:-1]
    onto_data = (moving & (times[1:] <= 0)).sum()
    count = calls(solver, 0.25) * (moving.sum() - onto_data) + calls(solver, 0.0) * onto_data
  return count if arrays.is_traced(count) else int(count)


def calls(solver: Solver, s: float) -> int:
  """How often the first step of a grid, from t = 0.5 to s, calls predict."""
  made = []

  def predict(z, t):
    made.append(t)
    return z

  def step():
    z = jnp.zeros((1, 1))
    keys = jax.random.split(jax.random.key(0), 1)
    return solver.step(predict, z, solver.init(z), np.float32(0.5), np.float32(s), keys)

  # Without jit, cond on a known s follows one branch, and loops are unrolled.
  with jax.disable_jit():
    jax.eval_shape(step)
  return len(made)


def contributions(solver: Solver, times: Grid) -> np.ndarray:
  """h_t = d sample/d y_t, the weight of the prediction at each time in the sample; float64 [n].

  For solvers that are linear in the prediction, with any output:
  sample = sum_t h_t y_t + terms in the first state and the noise.
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
  if not isinstance(solver, Solver):
    name = solver.traits.name if hasattr(solver, 'traits') else repr(solver)
    raise TypeError(f'{name} is a {type(solver).__name__}, but only a Solver integrates over times: '
                    'run a Descent with descent.descend')
  arrays.check_functions(predict=predict)
  arrays.check_scalars(times=times if arrays.is_traced(times) else np.asarray(times))
  if keys is not None:
    arrays.check_keys(keys, arrays.batch_size(z))
  if solver.traits.stochastic:
    if keys is None:
      raise ValueError(f'{solver.traits.name} is stochastic: pass keys, one per example')
    blind_spots.needs_falling(times, name=solver.traits.name)
  (solver.check or blind_spots.any_grid)(times)
  z = jax.tree.map(jnp.asarray, z)
  return _scan(arrays.pytree(solver.init), arrays.pytree(solver.step), arrays.pytree(predict), z,
               arrays.wide(times), keys, path=path)


@jax.jit(static_argnames='path')
def _scan(init, step, predict, z, times, keys, *, path):
  b, start = arrays.batch_size(z), (z, init(z))
  at_all = lambda z, t: predict(z, jnp.broadcast_to(t, (b,)))
  moving = times[1:] != times[:-1]
  first = times[0], jnp.where(moving.any(), times[1 + jnp.argmax(moving)], times[0] / 2)

  def body(carry, interval):
    moves, i, *interval = interval
    # vmap over grids turns cond into select, and computes a step that is skipped. It then repeats the
    # first step, because a zero slope times the infinite one of a step of no length is NaN.
    (z, state), (t, s) = arrays.where(moves, (carry, tuple(interval)), (start, first))
    own = None if keys is None else arrays.fold_number(keys, i)
    z, state = jax.lax.cond(moves, lambda: step(at_all, z, state, t, s, own), lambda: carry)
    return (z, state), z if path else None

  # Step i that moves has the noise i, however many steps before it do not.
  intervals = moving, jnp.cumsum(moving) - moving, times[:-1], times[1:]
  end, states = jax.lax.scan(body, start, intervals)
  if not path:
    return end
  return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), z, states)
