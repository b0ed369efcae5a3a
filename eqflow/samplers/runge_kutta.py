"""Adaptive Runge-Kutta: every sample takes steps as long as the tolerance allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Int

from eqflow import arrays, blind_spots, fields, outputs
from eqflow.arrays import Coef, Data, Static
from eqflow.mix import remix
from eqflow.outputs import Output
from eqflow.processes import Process
from eqflow.samplers.base import Solver, Traits, check_velocity, plane


class Count(NamedTuple):
  """The state of a solver that chooses its steps: evaluations [b], counted per sample."""
  evaluations: Int[Array, 'b']


def adaptive(process: Process, output: Output, *, rtol: ArrayLike = 1e-5, atol: ArrayLike = 1e-5,
             last: ArrayLike = 1e-3, max_steps: int = 1000) -> Solver:
  """z_s by dz/dt = u, each step's error below atol + rtol |z|: Dormand & Prince's 5(4) pair.

  Every sample has its own steps, so the grid [1, 0] is enough; the state that `run` returns counts
  their evaluations. The step to s = 0, where no network is evaluated, is DDIM's from `last`, with an
  error of about (sigma/alpha)^2 there; on `edm`, set `last` to the smallest sigma. Grids may rise, from
  t > 0 to noise. On a table of discrete time u jumps at every entry and steps are short: `transport` to
  a smooth process.

  NaN for a sample that needs more than max_steps steps between two times, or steps below the resolution
  of t: loosen the tolerances, raise max_steps or compute in float64. Only forward-mode differentiable.
  Raises ValueError where the output is blind at `last`.
  """
  arrays.check_functions(process=process, output=output)
  arrays.check_scalars(rtol=rtol, atol=atol, last=last, max_steps=max_steps)
  _check_last(last, process, output)
  tolerances = () if arrays.is_traced(rtol, atol) else (rtol, atol)
  if any(a < 0 for a in tolerances) or (tolerances and rtol + atol == 0) or max_steps < 1:
    raise ValueError(f'rtol={rtol}, atol={atol}, max_steps={max_steps}: tolerances are 0 or more, not '
                     'both 0, and max_steps is 1 or more')
  bound, traits = plane(process, output), Traits('adaptive', stages=None)
  step = Partial(_adaptive_step, **bound, rtol=rtol, atol=atol, last=last, max_steps=Static(max_steps))
  return Solver(Partial(_no_evaluations), step, Partial(check_velocity, **bound, traits=traits), traits)


def _check_last(last, process, output):
  if arrays.is_traced(last):
    return
  if not last > 0:
    raise ValueError(f'last={last}: the network is not evaluated at data; give a small time, as 1e-3')
  try:
    # With a time at which no output is blind, so that the remedy is a number.
    blind_spots.check_grid([max(0.1, float(last)), float(last), 0.0], process=process, output=output)
  except ValueError as error:
    raise ValueError(f'last={last}, from which DDIM steps to data: {error}') from error


def _no_evaluations(z):
  return Count(jnp.zeros(arrays.batch_size(z), jnp.int32))


def _adaptive_step(predict, z, state, t, s, keys, *, process, output, rtol, atol, last, max_steps):
  velocity = fields.as_output(predict, process=process, output=output, to=outputs.u)
  stop = jnp.where(s > 0, s, jnp.minimum(last, t))
  z, count = integrate(velocity, z, t, stop, rtol=rtol, atol=atol, max_steps=max_steps.value)

  def onto_data():
    y = predict(z, stop)
    return remix(process(s), state=process(stop), out=output(process, stop), z=z, y=y)

  z = jax.lax.cond(s > 0, lambda: z, onto_data)
  return z, Count(state.evaluations + count + (s <= 0))


def integrate(field: Callable[[Data, Float[Array, 'b']], Data], y: Data, start: Coef, end: Coef, *,
              rtol: ArrayLike, atol: ArrayLike, max_steps: int) -> tuple[Data, Int[Array, 'b']]:
  """(y at `end`, evaluations [b]) for dy/dt = field(y, t), from y [b, ...] at `start`; t is [b].

  Every sample chooses its own steps: over each of its leaves, the root mean square of the step's
  error/(atol + rtol |y|) stays below 1. y is NaN where that takes more than max_steps steps. The field
  receives y in its own dtype; between evaluations y is kept in float32 or wider.
  """
  try:
    import diffrax
  except ImportError as error:
    raise ImportError("adaptive steps need diffrax: pip install -e '.[ode]'") from error

  b, dtype, own = arrays.batch_size(y), jnp.result_type(float), y
  if not b:
    return y, jnp.zeros(0, jnp.int32)
  # diffrax needs time and every leaf, its slope and its error in one dtype.
  y = jax.tree.map(lambda a: jnp.asarray(a, jnp.promote_types(jnp.result_type(a), dtype)), y)

  # Time runs from 0 to 1, so that direction and first step do not depend on start and end.
  def slope(y, part):
    slopes = field(_cast(y, own), (1 - part) * start + part * end)
    return arrays.combine((end - start, _cast(slopes, y)))

  # A field may be bound to its batch (a condition is), so all samples are evaluated together,
  # although they step one by one.
  def one(part, y, _):
    together = lambda a: jax.lax.all_gather(a, 'samples')
    slopes = slope(jax.tree.map(together, y), together(part))
    return jax.tree.map(lambda a: a[jax.lax.axis_index('samples')], slopes)

  def solve(y, first):
    found = diffrax.diffeqsolve(
        diffrax.ODETerm(one), diffrax.Dopri5(scan_kind='lax'), 0.0, 1.0, 0.01, y, throw=False,
        max_steps=max_steps, adjoint=diffrax.ForwardMode(), saveat=diffrax.SaveAt(t1=True),
        stepsize_controller=diffrax.PIDController(
            rtol, atol, norm=_largest, dtmin=jnp.finfo(dtype).eps, force_dtmin=False),
        # The slope at the start, so that a rejected first step does not evaluate it again.
        solver_state=(jnp.array(False), first))
    success = found.result == diffrax.RESULTS.successful
    ys = jax.tree.map(lambda a: jnp.where(success, a[0], jnp.nan), found.ys)
    return ys, 1 + 6 * found.stats['num_steps']

  y, count = jax.vmap(solve, axis_name='samples')(y, slope(y, jnp.zeros(b, dtype)))
  return arrays.forward_only('adaptive integration', _cast(y, own)), count.astype(jnp.int32)


def _cast(tree, like):
  return jax.tree.map(lambda a, b: a.astype(b.dtype), tree, like)


def _largest(error):
  return jnp.max(jnp.stack([jnp.sqrt(jnp.mean(jnp.square(a))) for a in jax.tree.leaves(error)]))
