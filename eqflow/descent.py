"""Sampling by optimization: descend a field, such as that of Equilibrium Matching, to its zeros.

The solvers are those of `solver`, their steps blind to time: predict(z, 0) is the field, and where
others are told the next time they are told k [b], how many steps each sample has made. Every leaf of
their memory has a leading [b], so samples never couple, and `memory.slope` is the field where it was
last evaluated. A step size is a number times schedule(k), which is 1 unless another is given.
"""

from collections.abc import Callable
import re
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Int, Num
import numpy as np

from eqflow import arrays, slots as queue
from eqflow.arrays import Data, Keys, Static, combine
from eqflow.fields import Network, Predict
from eqflow.solver import Solver

# k [b] -> the factor of the step size [b].
Schedule = Callable[[Int[Array, 'b']], ArrayLike]


class Point(NamedTuple):
  """The memory of a method that remembers nothing but the slope it saw."""
  slope: Data


class Moving(NamedTuple):
  """The memory of Nesterov's method: where z was a step ago."""
  previous: Data
  slope: Data


class Optimizing(NamedTuple):
  """The memory of an optax transform: its state, one per sample."""
  state: Any
  slope: Data


@Partial
def constant(k: Num[ArrayLike, '*b']) -> ArrayLike:
  """1: the step size as it is given."""
  return 1.0


constant.func.told_nothing = True


def cosine(k: Num[ArrayLike, '*b'], *, num_steps: ArrayLike) -> Float[Array, '*b']:
  """(1 + cos(pi k/num_steps))/2, from 1 at the first step to 0 after the last."""
  return (1 + jnp.cos(jnp.pi * jnp.minimum(k / num_steps, 1))) / 2


def harmonic(k: Num[ArrayLike, '*b'], *, half: ArrayLike) -> Float[Array, '*b']:
  """1/(1 + k/half): steps whose sum is infinite and whose squares' sum is not."""
  return 1 / (1 + k / half)


def gradient_descent(step_size: ArrayLike, *, schedule: Schedule = constant) -> Solver:
  """z <- z - step_size f(z)."""
  return _solver(_gradient_step, step_size, schedule)


def _solver(step, step_size, schedule, init=None, **bound):
  return Solver(Partial(init or _point), Partial(
      step, step_size=step_size, schedule=arrays.pytree(schedule), **bound))


def _point(z):
  return Point(jax.tree.map(jnp.zeros_like, z))


def _gradient_step(predict, z, memory, t, k, keys, *, step_size, schedule):
  slope = _slope(predict, z, t)
  return combine((1, z), (-step_size * schedule(k), slope)), Point(slope)


def nesterov(step_size: ArrayLike, momentum: ArrayLike, *, schedule: Schedule = constant) -> Solver:
  """z_{k+1} = z_k - step_size f(z_k + momentum (z_k - z_{k-1})): the look-ahead gradient.

  Equilibrium Matching's algorithm 2: the gradient is taken ahead, the step from z itself, so no
  velocity accumulates [Wang & Du 2510.02300].
  """
  return _solver(_nesterov_step, step_size, schedule, _moving, momentum=momentum)


def _moving(z):
  return Moving(previous=z, slope=jax.tree.map(jnp.zeros_like, z))


def _nesterov_step(predict, z, memory, t, k, keys, *, step_size, schedule, momentum):
  slope = _slope(predict, combine((1 + momentum, z), (-momentum, memory.previous)), t)
  return combine((1, z), (-step_size * schedule(k), slope)), Moving(previous=z, slope=slope)


def heun(step_size: ArrayLike, *, schedule: Schedule = constant) -> Solver:
  """z <- z - step_size (f(z) + f(z - step_size f(z)))/2: Heun's rule on the gradient flow z' = -f.

  Two evaluations a step. As Euler's rule it is gradient descent; other rules are those of
  `samplers`, as `sample(samplers.heun(processes.linear, outputs.u), field, z, times)` with times that
  fall from the length of the flow, at most 1, to 0.
  """
  return _solver(_heun_step, step_size, schedule)


def _heun_step(predict, z, memory, t, k, keys, *, step_size, schedule):
  eta = step_size * schedule(k)
  slope = _slope(predict, z, t)
  ahead = _slope(predict, combine((1, z), (-eta, slope)), t)
  return combine((1, z), (-eta / 2, slope), (-eta / 2, ahead)), Point(slope)


_heun_step.evaluations = 2


def langevin(step_size: ArrayLike, temperature: ArrayLike, *,
             schedule: Schedule = constant) -> Solver:
  """z <- z - step_size f(z) + sqrt(2 step_size temperature) noise: draws from exp(-E/temperature).

  E is the energy whose gradient f is; unadjusted, so for small steps. Temperature 0 is gradient
  descent. Draws from keys, of which every sample has its own.
  """
  for name, number, right in (('step_size', step_size, np.greater),
                              ('temperature', temperature, np.greater_equal)):
    if not arrays.is_traced(number) and not np.all(right(number, 0)):
      raise ValueError(f'langevin: {name}={number}: give a step size above 0, and a temperature of 0, '
                       'for descent, or more')
  return _solver(_langevin_step, step_size, schedule, temperature=temperature)


def _langevin_step(predict, z, memory, t, k, keys, *, step_size, schedule, temperature):
  slope, eta = _slope(predict, z, t), step_size * schedule(k)
  spread = jnp.sqrt(2 * eta * temperature)
  return combine((1, z), (-eta, slope), (spread, arrays.noise_like(keys, z))), Point(slope)


_langevin_step.draws = True


def from_optax(transform: Any) -> Solver:
  """z <- z + update(f(z)), for an optax gradient transformation with a state for each sample.

  One that draws noise draws the same for every sample. Raises ValueError for a transformation that
  needs a loss value: a field has none.
  """
  try:
    jax.eval_shape(lambda z: transform.update(z, transform.init(z), z), jnp.zeros(1))
  except Exception as error:
    # Another error may be of this probe alone: some transforms are made for one tree of parameters.
    if re.search('missing .* keyword-only|must be provided', str(error)):
      raise ValueError(f'from_optax: {error}: a field has no loss value to give; choose a '
                       'transformation of gradients alone, such as optax.sgd(0.01)') from error
  return Solver(Partial(_optax_init, transform=Static(transform)),
                Partial(_optax_step, transform=Static(transform)))


def _optax_init(z, *, transform):
  return Optimizing(jax.vmap(transform.value.init)(z), jax.tree.map(jnp.zeros_like, z))


def _optax_step(predict, z, memory, t, k, keys, *, transform):
  slope = _slope(predict, z, t)
  updates, state = jax.vmap(transform.value.update)(slope, memory.state, z)
  return combine((1, z), (1, updates)), Optimizing(state, slope)


def evaluations(solver: Solver, steps: Any) -> Any:
  """How often the field is evaluated in so many steps: once each, by heun twice."""
  return steps * getattr(arrays.pytree(solver.step).func, 'evaluations', 1)


def descend(solver: Solver, field: Predict, z: Data, *, num_steps: int,
            keys: Keys | None = None) -> Data:
  """z after num_steps steps of the solver on the field, from z [b, ...]. One compiled scan.

  keys [b] feed a solver that draws: step k uses fold_in(keys, k). Raises ValueError where it has none,
  or another number than z has examples.
  """
  solver, z = _start(solver, z, keys=keys)
  _check_steps('num_steps', num_steps, least=0)
  return _descend(solver, arrays.pytree(field), z, keys, num_steps=num_steps)


@jax.jit(static_argnames='num_steps')
def _descend(solver, field, z, keys, *, num_steps):
  b = arrays.batch_size(z)

  def step(carry, k):
    return queue.advance(solver, field, *carry, jnp.full(b, k), keys), None

  return jax.lax.scan(step, (z, solver.init(z)), jnp.arange(num_steps))[0][0]


def descend_until(solver: Solver, field: Predict, z: Data, *, max_steps: int, threshold: ArrayLike,
                  keys: Keys | None = None) -> tuple[Data, Int[Array, 'b'], Float[Array, 'b']]:
  """(z, steps, norms): each sample descends until |f| < threshold, or for max_steps steps.

  |f| is the norm over all coordinates where the solver evaluates the field (for Nesterov, ahead of
  z). The step that finds it small is counted, and z stays where it was before that step's move.
  norms are those last seen: norms >= threshold, or NaN, did not converge. Not
  reverse-differentiable: how long it runs depends on the samples.
  """
  return descend_refilled(
      solver, Partial(_unconditional, field=arrays.pytree(field)), z, None,
      slots=arrays.batch_size(z), max_steps=max_steps, threshold=threshold, keys=keys)


def _unconditional(z, t, condition, *, field):
  return field(z, t)


def descend_refilled(solver: Solver, network: Network, z: Data, condition: Any, *, slots: int,
                     max_steps: int, threshold: ArrayLike, keys: Keys | None = None
                     ) -> tuple[Data, Int[Array, 'n'], Float[Array, 'n']]:
  """descend_until of n samples z [n, ...], `slots` of them at a time.

  A sample that has stopped leaves its slot, at the next fourth step, to one that waits, so that steps
  saved are time saved: fixed shapes, one compiled loop. condition, a pytree [n, ...] or None, and
  keys [n] go with their samples, which do not depend on slots. On several devices, call it under
  `jax.shard_map`: each then has a queue of its own. Raises ValueError as `descend` does, and where
  condition has not n rows.
  """
  solver, z = _start(solver, z, keys=keys, condition=condition)
  if slots < 1:
    raise ValueError(f'slots={slots}: give the number of samples to descend at a time, 1 or more')
  _check_steps('max_steps', max_steps, least=1)
  if not arrays.is_traced(threshold) and np.isnan(threshold).any():
    raise ValueError(f'threshold={threshold}: give the norm of the field below which a sample stops')
  slots = min(slots, arrays.batch_size(z))
  return queue.refilled(solver, arrays.pytree(network), z, condition, keys, max_steps, threshold,
                        slots=slots)


def _check_steps(name, steps, *, least):
  if not arrays.is_traced(steps) and (steps != int(steps) or steps < least):
    raise ValueError(f'{name}={steps}: give a whole number of steps, {least} or more')


def _start(solver, z, *, keys, condition=None):
  solver, z = Solver(*map(arrays.pytree, solver)), jax.tree.map(jnp.asarray, z)
  name = arrays.name_of(solver.step)
  if not hasattr(jax.eval_shape(solver.init, z), 'slope'):
    raise ValueError(f'{name} keeps no slope, so it does not descend: choose '
                     'gradient_descent, nesterov or from_optax, or sample along times')
  if keys is None and getattr(solver.step.func, 'draws', False):
    raise ValueError(f"{name.strip('_').removesuffix('_step')} draws noise: give keys=..., one key "
                     'per sample')
  n = arrays.batch_size(z)
  if not n:
    raise ValueError('z holds no sample: give one or more to descend')
  # A row that is not there would be read as the last one that is.
  for given, rows in (('condition', condition), ('keys', keys)):
    for leaf in jax.tree.leaves(rows):
      if jnp.shape(leaf)[:1] != (n,):
        raise ValueError(f'{given} has a leaf of the shape {jnp.shape(leaf)}, z holds {n} samples: '
                         f'give one row for each, [{n}, ...]')
  return solver, z


def _slope(predict, z, t):
  slope = predict(z, t)
  arrays.check_alike('predict returned', slope, 'z', z)
  # The memory must not change its type where the network computes in less than z has.
  return jax.tree.map(lambda a, b: a.astype(b.dtype), slope, z)
