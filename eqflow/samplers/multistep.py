"""Multistep solvers: one evaluation a step, and a polynomial through the earlier predictions.

DPM-Solver++ and UniPC solve one integral. Over a step of h in lambda = log(alpha/sigma), the ODE
gives z_s from z_t and the mean of x(lambda) under the weight e^lambda. DDIM keeps x constant; the
others fit a polynomial in lambda to the last predictions of x, so that every step is one `remix` with
their weighted sum.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float

from eqflow import arrays, blind_spots, outputs, processes
from eqflow.arrays import Coef, Data, combine, where
from eqflow.mix import Mix, remix
from eqflow.outputs import Output
from eqflow.processes import Process
from eqflow.samplers.base import Solver, Traits, check_num_steps, check_velocity, plane
from eqflow.samplers.noise import kept_by_churn, one_number, renewed, step_ratio


class History(NamedTuple):
  """The last x (or u) and their lambda (or t), newest first, and how many of them are filled.

  `steps` counts the steps made, for rules that depend on the steps left. To start a solver with known
  predictions, replace its `init` by one that returns them.
  """
  values: tuple[Data, ...]
  when: tuple[Float[Array, ''], ...]
  count: Any
  steps: Any


def _empty(z, *, depth):
  zeros = jax.tree.map(jnp.zeros_like, z)
  return History((zeros,) * depth.value, (jnp.zeros(()),) * depth.value, jnp.int32(0), jnp.int32(0))


def _pushed(history, y, when):
  """The history with y in front."""
  when = jnp.asarray(when, history.when[0].dtype)
  return History((y,) + history.values[:-1], (when,) + history.when[:-1],
                 jnp.minimum(history.count + 1, len(history.values)), history.steps + 1)


def adams_bashforth(process: Process, output: Output) -> Solver:
  """z_s = z_t + (s - t)((1 + k) u_t - k u_before), k = (s - t)/(2 (t - t_before)). Second order.

  The line through the last two velocities; the first step is Euler's.
  """
  bound, traits = plane(process, output), Traits('adams_bashforth')
  return Solver(Partial(_empty, depth=arrays.Static(2)), Partial(_adams_bashforth_step, **bound),
                Partial(check_velocity, **bound, traits=traits), traits)


def _adams_bashforth_step(predict, z, history, t, s, keys, *, process, output):
  rate, out = processes.rate(process, t), output(process, t)
  u = remix(rate, state=process(t), out=out, z=z, y=predict(z, t))
  history = _pushed(history, u, t)
  first = history.count < 2
  k = jnp.where(first, 0, (s - t) / (2 * jnp.where(first, 1, history.when[0] - history.when[1])))
  return combine((1, z), ((s - t) * (1 + k), u), (-(s - t) * k, history.values[1])), history


def dpmpp_2m(process: Process, output: Output, *, churn: ArrayLike = 0.0, heun: bool = False,
             num_steps: int | None = None) -> Solver:
  """DDIM with x extrapolated half a step along the line through the last two. Second order.

  DPM-Solver++ 2M [Lu+ 2211.01095]. The mean of a line over the step is taken at its middle, or, with
  `heun`, exactly. churn replaces noise as in `ddim`; 1/2 is SDE-DPM-Solver++ 2M. With num_steps, the
  last step is DDIM's, as a step to s = 0 always is.
  """
  return _dpmpp(process, output, 2, churn, heun, num_steps, taper=True)


def dpmpp_3m(process: Process, output: Output, *, churn: ArrayLike = 0.0, heun: bool = False,
             num_steps: int | None = None, taper: bool = True,
             curvature: ArrayLike = 1.0) -> Solver:
  """DDIM with the mean over the step of the parabola through the last three x. Third order.

  DPM-Solver++ 3M. The second step is 2M's, with `heun` as there. With num_steps, the order falls with
  the number of steps left, or, without `taper`, to 1 at the last step. The published code, and code
  derived from it, takes half of the parabola's curvature and is of second order: curvature=0.5.
  """
  return _dpmpp(process, output, 3, churn, heun, num_steps, taper, curvature=curvature)


def _dpmpp(process, output, order, churn, heun, num_steps, taper, curvature=1.0):
  one_number('churn', churn, most=1)
  check_num_steps(num_steps)
  noisy = not arrays.is_number(churn, 0)
  bound, traits = plane(process, output), Traits(f'dpmpp_{order}m', stochastic=noisy)
  step = Partial(_dpmpp_step, **bound, curvature=curvature, num_steps=num_steps,
                 heun=arrays.Static(heun), taper=arrays.Static(taper))
  if noisy:
    step = Partial(_noisy_dpmpp_step, **step.keywords, churn=churn)
  return Solver(Partial(_empty, depth=arrays.Static(order)), step,
                Partial(_check_grid, **bound, num_steps=num_steps, traits=traits), traits)


def _check_grid(times, *, process, output, num_steps, traits):
  blind_spots.check_grid(times, process=process, output=output)
  # Every step is a remix of z and x, which are parallel at data: the grid may end there, not start.
  blind_spots.needs_x(times, process=process, name=traits.name)
  blind_spots.needs_num_steps(times, num_steps=num_steps, name=traits.name)


def _dpmpp_step(predict, z, history, t, s, keys, *, process, output, **rules):
  x, history = _mean_x(predict, z, history, t, s, process, output, 0.0, **rules)
  return remix(process(s), state=process(t), out=outputs.x(process, t), z=z, y=x), history


def _noisy_dpmpp_step(predict, z, history, t, s, keys, *, process, output, churn, **rules):
  x, history = _mean_x(predict, z, history, t, s, process, output, churn, **rules)
  here, there = process(t), process(s)
  r = kept_by_churn(step_ratio(here, there), number=churn)
  to = Mix(there.x, there.eps * r)
  mean = remix(to, state=here, out=outputs.x(process, t), z=z, y=x)
  return renewed(mean, there.eps, r, keys), history


def _mean_x(predict, z, history, t, s, process, output, churn, *, heun, curvature, num_steps, taper):
  """(the mean of x over the step from t to s, by as many earlier x as there are; the history)."""
  x, here, h = _predicted_x(predict, z, t, s, process, output)
  history = _pushed(history, x, here)
  order = _order(history, h, num_steps, taper)
  # Where h is infinite the order is 1, which needs none: 1 keeps gradients finite.
  h = jnp.where(jnp.isfinite(h), h, 1)
  nodes = _nodes(history, h)
  # Replaced noise makes z forget by the same factor as a longer step does.
  _, mean, square = _moments(h, 2, kept=1 - jnp.asarray(churn, h.dtype))
  rules = [[1.0], [1.0, mean if heun.value else 0.5], [1.0, mean, curvature * square]]
  weights = _chosen(order, [_weights(nodes[:len(rule)], rule) for rule in rules[:len(nodes)]])
  return combine(*zip(weights, history.values)), history


def _predicted_x(predict, z, t, s, process, output):
  """(x, lambda_t, h) at t."""
  here = _lambda(process, t)
  state, out = process(t), output(process, t)
  x = remix(outputs.x(process, t), state=state, out=out, z=z, y=predict(z, t))
  return x, here, _lambda(process, s) - here


def _lambda(process: Process, t: Coef) -> Coef:
  """log(alpha/sigma), of slope 0 where it is infinite: there no weight depends on it."""
  state = process(t)
  at_end = (state.x == 0) | (state.eps == 0)
  alpha, sigma = (jnp.where(at_end, 1, a) for a in state)
  end = jnp.where(state.x == 0, -jnp.inf, jnp.inf)
  return jnp.where(at_end, end, jnp.log(alpha) - jnp.log(sigma))


def _order(history, h, num_steps, taper):
  """As many x as the history has; fewer towards the end, and one where log-SNR jumps to infinity."""
  order = history.count
  if num_steps is not None:
    left = num_steps - history.steps + 1
    order = jnp.where(left == 1, 1, order)
    if taper.value:
      order = jnp.minimum(order, jnp.maximum(left, 1))
  return jnp.where(jnp.isfinite(h), order, 1)


def _nodes(history, h):
  """(lambda_i - lambda_t)/h of the history: 0, then negative numbers; -inf for pure noise."""
  ways = [when - history.when[0] for when in history.when[1:]]
  places = [jnp.where(jnp.isfinite(way), jnp.where(jnp.isfinite(way), way, 0) / h, -jnp.inf)
            for way in ways]
  # Entries that are not filled yet are not used; they differ, so that nothing divides by zero.
  return [jnp.zeros_like(h)] + [jnp.where(i + 1 < history.count, place, -i - 1.0)
                                for i, place in enumerate(places)]


def _moments(h, most, kept=1):
  """Means of 1, r, ..., r^most over r in [0, 1] under the weight e^(h r/kept), by parts."""
  # With nothing kept all weight is at r = 1.
  nothing = kept == 0
  rate = h / jnp.where(nothing, 1, kept)
  whole = jnp.where(nothing, 1, -1 / jnp.expm1(-rate))
  moments = [jnp.ones_like(h)]
  for n in range(1, most + 1):
    moments.append(whole - jnp.where(nothing, n * kept / h, n / rate) * moments[-1])
  return moments


def _weights(nodes, moments):
  """w such that sum_i w_i f_i is the mean of the polynomial through (nodes_i, f_i), [n].

  Newton's divided differences of the rows of the identity. The last node may be infinite: its
  difference is then 0.
  """
  n, finite = len(nodes), [jnp.isfinite(node) for node in nodes]
  # Any other numbers, all different: no node is above 1.
  nodes = [jnp.where(known, node, 2.0 + i) for i, (known, node) in enumerate(zip(finite, nodes))]
  rows = list(jnp.eye(n))
  total, basis = rows[0], [1.0]
  for k in range(1, n):
    rows = [(b - a) / (nodes[i + k] - nodes[i]) for i, (a, b) in enumerate(zip(rows, rows[1:]))]
    # basis (r - nodes[k-1])
    basis = [high - nodes[k - 1] * low for high, low in zip([0.0] + basis, basis + [0.0])]
    total = total + jnp.where(finite[k], rows[0] * sum(c * m for c, m in zip(basis, moments)), 0)
  return total


def _chosen(order, weights):
  """weights[order - 1], filled up with zeros to the longest."""
  most = len(weights[-1])
  padded = [jnp.pad(w, (0, most - len(w))) for w in weights]
  return list(jnp.select([order == i + 1 for i in range(len(padded))], padded, padded[-1]))


class Corrected(NamedTuple):
  """UniPC's state: the history, and the last step's start z at t and its order."""
  history: History
  z: Data
  t: Any
  order: Any


def unipc(process: Process, output: Output, *, order: int = 2, num_steps: int | None = None,
          bh1: bool = False) -> Solver:
  """DPM-Solver++'s step, corrected as soon as the x at its end is predicted; `order` is 1, 2 or 3.

  UniPC with prediction of x [Zhao+ 2302.04867]; the correction costs no evaluation. B(h) is bh2,
  or bh1 with `bh1`; they differ only in the mean of the line. With num_steps, the order
  falls with the number of steps left.
  """
  check_num_steps(num_steps)
  if order not in (1, 2, 3):
    raise ValueError(f'order={order}: UniPC is of order 1, 2 or 3 here')
  bound, traits = plane(process, output), Traits('unipc')
  return Solver(Partial(_nothing_corrected, depth=arrays.Static(order)),
                Partial(_unipc_step, **bound, num_steps=num_steps, bh1=arrays.Static(bh1)),
                Partial(_check_grid, **bound, num_steps=num_steps, traits=traits), traits)


def _nothing_corrected(z, *, depth):
  return Corrected(_empty(z, depth=depth), z, jnp.zeros(()), jnp.int32(1))


def _unipc_step(predict, z, state, t, s, keys, *, process, output, num_steps, bh1):
  x, here, h = _predicted_x(predict, z, t, s, process, output)
  z = _corrected(z, x, state, here, process, t, bh1)
  history = _pushed(state.history, x, here)
  order = _order(history, h, num_steps, arrays.Static(True))
  h = jnp.where(jnp.isfinite(h), h, 1)
  moments = _moments(h, 2)
  rules = [[1.0], [1.0, _middle(h, bh1)], moments]
  nodes = _nodes(history, h)
  weights = _chosen(order, [_weights(nodes[:len(rule)], rule) for rule in rules[:len(nodes)]])
  mean = combine(*zip(weights, history.values))
  ahead = remix(process(s), state=process(t), out=outputs.x(process, t), z=z, y=mean)
  return ahead, Corrected(history, z, jnp.asarray(t, state.t.dtype), order)


def _corrected(z, x, state, here, process, t, bh1):
  """UniC, the corrector: repeats the last step with the x at its end, one order higher."""
  history, z_before, t_before, order = state
  first = history.count == 0
  t_before = jnp.where(first, t, t_before)
  whole = jnp.where(first, 1, here - history.when[0])
  # From pure noise, where h is infinite, the order is 1 and only `_middle` needs it.
  h = jnp.where(jnp.isfinite(whole), whole, 1)
  past = _nodes(history, h)
  nodes = [past[0], jnp.ones_like(h), *past[1:]]
  moments = _moments(h, 3)
  rules = [[1.0, _middle(whole, bh1)], moments[:3], moments]
  weights = _chosen(order, [_weights(nodes[:len(rule)], rule) for rule in rules[:len(past)]])
  trees = [history.values[0], x, *history.values[1:]]
  mean = combine(*zip(weights, trees))
  again = remix(process(t), state=process(t_before), out=outputs.x(process, t_before), z=z_before,
                y=mean)
  return where(first, z, again)


def _middle(h, bh1):
  """The mean of r over the step that UniPC gives a line: B(h)/(2 (e^h - 1) e^-h)."""
  if not bh1.value:
    return 0.5
  # From pure noise, where h is infinite, only the x at the end of the step matters.
  finite = jnp.isfinite(h)
  safe = jnp.where(finite, h, 1)
  return jnp.where(finite, -safe / jnp.expm1(-safe) / 2, 0.5)
