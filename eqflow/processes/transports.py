"""Transport between two processes: the time and scale at which they are equally noisy."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jax import numpy as jnp
from jax.tree_util import Partial

from eqflow import arrays
from eqflow.arrays import Coef, Number
from eqflow.processes.base import Process, logsnr, time_of_logsnr


class Transport(NamedTuple):
  """A state z_b of one process at t is the state scale(t) z_b of another at time(t)."""
  time: Callable[[Coef], Coef]
  scale: Callable[[Coef], Coef]


def transport(process_a: Process, process_b: Process, *, low: Number = 0.0,
              high: Number = 1.0) -> Transport:
  """(time, scale): a state z of process_b at t is the state scale(t) z of process_a at time(t).

  The two states have the same log-SNR, so a network trained on process_a can be sampled on process_b:

    moved = processes.transport(process_a, process_b)
    predict = fields.transported(predict, moved)
    output = Partial(outputs.transported, output=output, process_a=process_a, time=moved.time)
    x = samplers.sample(samplers.heun(process_b, output), predict, z, times)

  Times of process_a are in [low, high]; EDM's t is not bounded by 1. time is NaN where process_a does
  not reach the log-SNR of process_b.
  """
  arrays.check_functions(process_a=process_a, process_b=process_b)
  arrays.check_scalars(low=low, high=high)
  bound = dict(process_a=process_a, process_b=process_b, low=low, high=high)
  return arrays.pytree(Transport(Partial(_transported_time, **bound),
                                 Partial(_transported_scale, **bound)))


def _transported_time(t, *, process_a, process_b, low, high):
  value = logsnr(process_b, arrays.floating(t))
  ends = logsnr(process_a, jnp.stack([arrays.floating(high), arrays.floating(low)]))
  # Two computations of the same log-SNR differ by rounding.
  slack = 1e-5
  within = (value >= ends[0] - slack) & (value <= ends[1] + slack)
  return jnp.where(within, time_of_logsnr(process_a, value, low=low, high=high), jnp.nan)


def _transported_scale(t, *, process_a, process_b, low, high):
  time = _transported_time(t, process_a=process_a, process_b=process_b, low=low, high=high)
  a, b = process_a(time), process_b(t)
  return jnp.hypot(a.x, a.eps) / jnp.hypot(b.x, b.eps)
