"""What follows from any process t -> Mix(alpha, sigma): its velocity, its log-SNR and their inverse."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax import numpy as jnp
from jaxtyping import Array, ArrayLike, Float
import numpy as np

from eqflow import arrays
from eqflow.arrays import Coef
from eqflow.mix import Mix

Process = Callable[[Coef], Mix]


def rate(process: Process, t: Coef) -> Mix:
  """(d alpha/dt, d sigma/dt), by forward-mode differentiation: dz/dt = rate.x x + rate.eps eps."""
  t = arrays.wide(t)
  slopes = jax.jvp(process, (t,), (jnp.ones_like(t),))[1]
  steep = lambda a: jnp.abs(a) > _steepest(t.dtype) ** 0.8
  return jax.tree.map(lambda a: jnp.where(steep(a), jnp.where(a > 0, jnp.inf, -jnp.inf), a), slopes)


def root(a: Coef) -> Coef:
  """sqrt(a), the sigma of a process that has an infinite velocity at data.

  At a = 0 its slope is 1e154 (1e19 in float32). sigma is 0 there for all numbers of the process, and 0
  times this slope is their derivative, 0; 0 times infinity would be NaN. `rate` returns infinity.
  """
  positive = a > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, a, 1)), a * _steepest(jnp.result_type(a)))


def _steepest(dtype):
  return 1 / np.sqrt(jnp.finfo(dtype).tiny)


def noise_to_signal(process: Process, t: Coef) -> Coef:
  """sigma/alpha: EDM's sigma, on any process; infinite where alpha = 0."""
  state = process(t)
  return state.eps / state.x


def logsnr(process: Process, t: Coef) -> Coef:
  """lambda = 2 log(alpha/sigma), falling from +inf at data to -inf at noise."""
  state = process(t)
  return 2 * (jnp.log(state.x) - jnp.log(state.eps))


def logsnr_rate(process: Process, t: Coef) -> Coef:
  """d lambda/dt, negative."""
  t = arrays.floating(t)
  return jax.jvp(lambda t: logsnr(process, t), (t,), (jnp.ones_like(t),))[1]


def time_of_logsnr(process: Process, value: Float[ArrayLike, '...'], *, low: ArrayLike = 0.0,
                   high: ArrayLike = 1.0) -> Float[Array, '...']:
  """The t in [low, high] at which logsnr(process, t) = value, by 60 bisections.

  Differentiable in `value` and in the process's numbers: dt/dlambda = 1/(dlambda/dt). A value
  out of reach gives the nearer end. EDM's t is not bounded by 1: pass a `high`.
  """
  # -lambda rises with t.
  return arrays.inverse(lambda t: -logsnr(process, t), -arrays.floating(value), low, high)
