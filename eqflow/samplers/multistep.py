"""Solvers that remember: one evaluation a step, and a polynomial through the earlier ones.

DPM-Solver++ and UniPC solve one integral. Over a step of h in lambda = log(alpha/sigma), the ODE
gives z_s from z_t and the mean of x(lambda) under the weight e^lambda. DDIM takes x for constant;
the others put a polynomial in lambda through the x that they have seen in its place, so that every
step is one `remix` with a weighted sum of these x.
"""

from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float

from eqflow import arrays, outputs, processes
from eqflow.arrays import Data, combine
from eqflow.mix import Mix, remix
from eqflow.outputs import Output
from eqflow.processes import Process
from eqflow.samplers.base import Solver, assemble
from eqflow.samplers.noise import kept_by_churn, one_number, renewed, step_ratio


class Memory(NamedTuple):
  """The x (or u) last seen and lambda (or t) then, newest first, and how many of them there are.

  `steps` are the steps made, for rules that know the end. To start a solver with what another one
  saw, give `Solver(init, step)` an init that returns it.
  """
  seen: tuple[Data, ...]
  when: tuple[Float[Array, ''], ...]
  count: Any
  steps: Any


def _empty(z, *, depth):
  zeros = jax.tree.map(jnp.zeros_like, z)
  return Memory((zeros,) * depth.value, (jnp.zeros(()),) * depth.value, jnp.int32(0), jnp.int32(0))


def _pushed(memory, y, when, moved):
  """The memory with y in front. A step of length zero, with which grids are padded, leaves none."""
  when = jnp.asarray(when, memory.when[0].dtype)
  depth = len(memory.seen)
  new = Memory((y,) + memory.seen[:-1], (when,) + memory.when[:-1],
               jnp.minimum(memory.count + 1, depth), memory.steps + 1)
  return _where(moved, new, memory)


def _where(condition, tree, other):
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), tree, other)


def adams_bashforth(process: Process, output: Output) -> Solver:
  """z_s = z_t + (s - t)((1 + k) u_t - k u_before), k = (s - t)/(2 (t - t_before)). Second order.

  The line through the last two velocities; Euler's step at first.
  """
  return assemble(_adams_bashforth_step, process, output,
                  init=Partial(_empty, depth=arrays.Static(2)))


def _adams_bashforth_step(predict, z, memory, t, s, keys, *, process, output):
  rate, out = processes.rate(process, t), output(process, t)
  u = remix(rate, state=process(t), out=out, z=z, y=predict(z, t))
  memory = _pushed(memory, u, t, s != t)
  first = memory.count < 2
  k = jnp.where(first, 0, (s - t) / (2 * jnp.where(first, 1, memory.when[0] - memory.when[1])))
  return combine((1, z), ((s - t) * (1 + k), u), (-(s - t) * k, memory.seen[1])), memory


def dpmpp_2m(process: Process, output: Output, *, churn: ArrayLike = 0.0, heun: bool = False,
             num_steps: int | None = None) -> Solver:
  """DDIM with x extrapolated half a step along the line through the last two. Second order.

  DPM-Solver++ 2M [Lu+ 2211.01095]. The mean of a line over the step is taken at its middle, or, with
  `heun`, exactly. churn puts noise back as in `ddim`; 1/2 is SDE-DPM-Solver++ 2M. With num_steps,
  the last step is DDIM's, as it always is to s = 0.
  """
  return _dpmpp(process, output, 2, churn, heun, num_steps, taper=True)


def dpmpp_3m(process: Process, output: Output, *, churn: ArrayLike = 0.0, heun: bool = False,
             num_steps: int | None = None, taper: bool = True,
             curvature: ArrayLike = 1.0) -> Solver:
  """DDIM with the mean over the step of the parabola through the last three x. Third order.

  DPM-Solver++ 3M. The second step is 2M's, with `heun` as there. With num_steps, the order falls
  with the steps that are left, or, without `taper`, to 1 at the last. The published code, and what
  follows it, counts half of the parabola's curvature and is of second order: curvature=0.5.
  """
  return _dpmpp(process, output, 3, churn, heun, num_steps, taper, curvature=curvature)


def _dpmpp(process, output, order, churn, heun, num_steps, taper, curvature=1.0):
  one_number('churn', churn)
  if not arrays.is_traced(churn) and not 0 <= churn <= 1:
    raise ValueError(f'churn={churn}: give a number from 0 (no noise) to 1')
  _check_num_steps(num_steps)
  quiet = not arrays.is_traced(churn) and churn == 0
  return assemble(
      _dpmpp_step if quiet else _noisy_dpmpp_step, process, output,
      init=Partial(_empty, depth=arrays.Static(order)), churn=churn, curvature=curvature,
      num_steps=num_steps, heun=arrays.Static(heun), taper=arrays.Static(taper))


def _check_num_steps(num_steps):
  if num_steps is not None and not arrays.is_traced(num_steps) and not num_steps >= 1:
    raise ValueError(f'num_steps={num_steps}: give the number of steps of the grid, or None')


def _dpmpp_step(predict, z, memory, t, s, keys, *, process, output, churn, **rules):
  x, memory = _mean_x(predict, z, memory, t, s, process, output, 0.0, **rules)
  ahead = remix(process(s), state=process(t), out=outputs.x(process, t), z=z, y=x)
  return _where(s != t, ahead, z), memory


def _noisy_dpmpp_step(predict, z, memory, t, s, keys, *, process, output, churn, **rules):
  x, memory = _mean_x(predict, z, memory, t, s, process, output, churn, **rules)
  here, there = process(t), process(s)
  r = kept_by_churn(step_ratio(here, there), number=churn)
  to = Mix(there.x, there.eps * r)
  mean = remix(to, state=here, out=outputs.x(process, t), z=z, y=x)
  return renewed(_where(s != t, mean, z), there.eps, r, keys), memory


_noisy_dpmpp_step.draws = _adams_bashforth_step.moves_by_rate = True
# Every step is a remix of z and x, which are parallel at data: the grid may end there, not start.
_dpmpp_step.holds_x = _noisy_dpmpp_step.holds_x = True


def _mean_x(predict, z, memory, t, s, process, output, churn, *, heun, curvature, num_steps, taper):
  """The mean of x over the step from t to s, by as many earlier x as there are, and the memory."""
  x, here, h = _seen(predict, z, t, s, process, output)
  memory = _pushed(memory, x, here, s != t)
  order = _order(memory, h, s != t, num_steps, taper)
  # Where h is infinite the order is 1, which needs none: 1 keeps gradients finite.
  h = jnp.where(jnp.isfinite(h), h, 1)
  nodes = _nodes(memory, h)
  # Noise put back shortens the memory of z by the same factor as a longer step.
  _, mean, square = _moments(h / (1 - jnp.asarray(churn, h.dtype)), 2)
  rules = [[1.0], [1.0, mean if heun.value else 0.5], [1.0, mean, curvature * square]]
  weights = _chosen(order, [_weights(nodes[:len(rule)], rule) for rule in rules[:len(nodes)]])
  return combine(*zip(weights, memory.seen)), memory


def _seen(predict, z, t, s, process, output):
  """(x, lambda_t, h) at t; h = 1 where s = t, which moves nothing but must not divide by zero."""
  here = processes.logsnr(process, t) / 2
  h = jnp.where(s == t, 1, processes.logsnr(process, s) / 2 - here)
  state, out = process(t), output(process, t)
  return remix(outputs.x(process, t), state=state, out=out, z=z, y=predict(z, t)), here, h


def _order(memory, h, moved, num_steps, taper):
  """As many x as are remembered; fewer towards the end, and one where log-SNR jumps to infinity."""
  order = memory.count
  if num_steps is not None:
    left = num_steps - memory.steps + 1
    order = jnp.where(left == 1, 1, order)
    if taper.value:
      order = jnp.minimum(order, jnp.maximum(left, 1))
  return jnp.where(jnp.isfinite(h) & moved, order, 1)


def _nodes(memory, h):
  """(lambda_i - lambda_t)/h of what is remembered: 0, then negative numbers."""
  places = [(when - memory.when[0]) / h for when in memory.when[1:]]
  # Those not filled yet are not used; apart, so that nothing divides by zero.
  return [jnp.zeros_like(h)] + [jnp.where(i + 1 < memory.count, place, -i - 1.0)
                                for i, place in enumerate(places)]


def _moments(h, most):
  """Means of 1, r, ..., r^most over r in [0, 1] under the weight e^(h r), by parts."""
  whole = -1 / jnp.expm1(-h)
  moments = [jnp.ones_like(h)]
  for n in range(1, most + 1):
    moments.append(whole - n / h * moments[-1])
  return moments


def _weights(nodes, moments):
  """w such that sum_i w_i f_i is the mean of the polynomial through (nodes_i, f_i), [n].

  Newton's divided differences of the rows of the identity; only the last node may be infinite.
  """
  n = len(nodes)
  rows = list(jnp.eye(n))
  total, basis = rows[0], [1.0]
  for k in range(1, n):
    rows = [(b - a) / (nodes[i + k] - nodes[i]) for i, (a, b) in enumerate(zip(rows, rows[1:]))]
    # basis (r - nodes[k-1])
    basis = [high - nodes[k - 1] * low for high, low in zip([0.0] + basis, basis + [0.0])]
    total = total + rows[0] * sum(c * m for c, m in zip(basis, moments))
  return total


def _chosen(order, weights):
  """weights[order - 1], filled up with zeros to the longest."""
  most = len(weights[-1])
  padded = [jnp.pad(w, (0, most - len(w))) for w in weights]
  return list(jnp.select([order == i + 1 for i in range(len(padded))], padded, padded[-1]))


class Corrected(NamedTuple):
  """UniPC's memory: what was seen, and the step last made, from z at t, of which order."""
  memory: Memory
  z: Data
  t: Any
  order: Any


def unipc(process: Process, output: Output, *, order: int = 2, num_steps: int | None = None,
          bh1: bool = False) -> Solver:
  """DPM-Solver++'s prediction, corrected once the x at its end is seen. Of the order given, 1 to 3.

  UniPC with prediction of x [Zhao+ 2302.04867]; the correction costs no evaluation. B(h) is that of
  bh2, or of `bh1`, which differ in the line's mean alone. With num_steps, the order falls with the
  steps that are left.
  """
  _check_num_steps(num_steps)
  if order not in (1, 2, 3):
    raise ValueError(f'order={order}: UniPC is of order 1, 2 or 3 here')
  return assemble(_unipc_step, process, output, num_steps=num_steps, bh1=arrays.Static(bh1),
                  init=Partial(_nothing_corrected, depth=arrays.Static(order)))


def _nothing_corrected(z, *, depth):
  return Corrected(_empty(z, depth=depth), z, jnp.zeros(()), jnp.int32(1))


def _unipc_step(predict, z, memory, t, s, keys, *, process, output, num_steps, bh1):
  x, here, h = _seen(predict, z, t, s, process, output)
  seen, z_before, t_before, order = memory
  z = _corrected(z, x, memory, here, process, t, bh1)
  moved = s != t
  seen = _pushed(seen, x, here, moved)
  new_order = _order(seen, h, moved, num_steps, arrays.Static(True))
  h = jnp.where(jnp.isfinite(h), h, 1)
  moments = _moments(h, 2)
  rules = [[1.0], [1.0, _middle(h, bh1)], moments]
  nodes = _nodes(seen, h)
  weights = _chosen(new_order, [_weights(nodes[:len(rule)], rule) for rule in rules[:len(nodes)]])
  mean = combine(*zip(weights, seen.seen))
  ahead = remix(process(s), state=process(t), out=outputs.x(process, t), z=z, y=mean)
  new = Corrected(seen, z, jnp.asarray(t, t_before.dtype), new_order)
  return _where(moved, ahead, z), _where(moved, new, memory)


_unipc_step.holds_x = True


def _corrected(z, x, memory, here, process, t, bh1):
  """z, of the step last made, made again with the x seen at its end, one order higher."""
  seen, z_before, t_before, order = memory
  first = seen.count == 0
  t_before = jnp.where(first, t, t_before)
  h = jnp.where(first, 1, here - seen.when[0])
  past = _nodes(seen, h)
  nodes = [past[0], jnp.ones_like(h), *past[1:]]
  moments = _moments(h, 3)
  rules = [[1.0, _middle(h, bh1)], moments[:3], moments]
  weights = _chosen(order, [_weights(nodes[:len(rule)], rule) for rule in rules[:len(past)]])
  trees = [seen.seen[0], x, *seen.seen[1:]]
  mean = combine(*zip(weights, trees))
  again = remix(process(t), state=process(t_before), out=outputs.x(process, t_before), z=z_before,
                y=mean)
  return _where(first, z, again)


def _middle(h, bh1):
  """The mean of r over the step that UniPC gives a line: B(h)/(2 (e^h - 1) e^-h)."""
  if not bh1.value:
    return 0.5
  # From pure noise, where h is infinite, only the x at the end of the step counts.
  finite = jnp.isfinite(h)
  safe = jnp.where(finite, h, 1)
  return jnp.where(finite, -safe / jnp.expm1(-safe) / 2, 0.5)
