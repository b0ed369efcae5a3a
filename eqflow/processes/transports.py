"""From one process to another that is equally noisy: a change of time and scale."""

from collections.abc import Callable
from typing import NamedTuple

from jax import numpy as jnp
from jax.tree_util import Partial

from eqflow import arrays
from eqflow.arrays import Coef, Number
from eqflow.processes.base import Process, _floating, logsnr, time_of_logsnr


class Transport(NamedTuple):
  """Where a state of one process stands on another: z_a = scale(t) z_b, at the time time(t)."""
  time: Callable[[Coef], Coef]
  scale: Callable[[Coef], Coef]


def transport(process_a: Process, process_b: Process, *, low: Number = 0.0,
              high: Number = 1.0) -> Transport:
  """(time, scale): a state z of process_b at t is the state scale(t) z of process_a at time(t).

  The two are equally noisy there, so a network trained on process_a serves process_b:
  `fields.transported` and `outputs.transported`. process_a's times are sought in [low, high]; EDM's
  t is not bounded by 1. Where process_b leaves process_a's range of log-SNR, time is not a number.
  """
  a, b = arrays.pytree(process_a), arrays.pytree(process_b)
  bound = dict(process_a=a, process_b=b, low=low, high=high)
  return Transport(Partial(_transported_time, **bound), Partial(_transported_scale, **bound))


def _transported_time(t, *, process_a, process_b, low, high):
  value = logsnr(process_b, _floating(t))
  ends = logsnr(process_a, jnp.stack([_floating(high), _floating(low)]))
  # Rounding of two ways to the same log-SNR is no difference.
  slack = 1e-5
  within = (value >= ends[0] - slack) & (value <= ends[1] + slack)
  return jnp.where(within, time_of_logsnr(process_a, value, low=low, high=high), jnp.nan)


def _transported_scale(t, *, process_a, process_b, low, high):
  time = _transported_time(t, process_a=process_a, process_b=process_b, low=low, high=high)
  a, b = process_a(time), process_b(t)
  return jnp.hypot(a.x, a.eps) / jnp.hypot(b.x, b.eps)
