"""What follows from any process t -> Mix(alpha, sigma): its velocity, its log-SNR and their inverse."""

from collections.abc import Callable

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float

from eqflow.arrays import Coef
from eqflow.mix import Mix

Process = Callable[[Coef], Mix]


def rate(process: Process, t: Coef) -> Mix:
  """(d alpha/dt, d sigma/dt), by forward-mode differentiation, so that dz/dt = rate x, eps."""
  t = _floating(t)
  return jax.jvp(process, (t,), (jnp.ones_like(t),))[1]


def noise_to_signal(process: Process, t: Coef) -> Coef:
  """sigma/alpha: EDM's sigma, on any process; infinite where alpha = 0."""
  state = process(t)
  return state.eps / state.x


@Partial
def logsnr(process: Process, t: Coef) -> Coef:
  """lambda = 2 log(alpha/sigma), falling from +inf at data to -inf at noise."""
  state = process(t)
  return 2 * (jnp.log(state.x) - jnp.log(state.eps))


def logsnr_rate(process: Process, t: Coef) -> Coef:
  """d lambda/dt, negative."""
  t = _floating(t)
  return jax.jvp(lambda t: logsnr(process, t), (t,), (jnp.ones_like(t),))[1]


def time_of_logsnr(process: Process, value: Float[ArrayLike, '...'], *, low: ArrayLike = 0.0,
                   high: ArrayLike = 1.0) -> Float[Array, '...']:
  """The t in [low, high] at which logsnr(process, t) = value, by 60 bisections.

  Differentiable in `value` and in the process's numbers: dt/dlambda = 1/(dlambda/dt). A value out
  of reach gives the nearer end. EDM's t is not bounded by 1: give it a `high`.
  """
  value = _floating(value)

  def halve(_, ends):
    left, right = ends
    middle = (left + right) / 2
    noisier = logsnr(process, middle) > value
    return jnp.where(noisier, middle, left), jnp.where(noisier, right, middle)

  ends = jnp.full_like(value, low), jnp.full_like(value, high)
  t = jax.lax.stop_gradient(sum(jax.lax.fori_loop(0, 60, halve, ends)) / 2)
  # Zero in value; its derivative is the implicit function's. At the ends lambda is not finite.
  inside = (t > low) & (t < high) & jnp.isfinite(value)
  t_inside = jnp.where(inside, t, (low + high) / 2)
  slope = jax.lax.stop_gradient(logsnr_rate(process, t_inside))
  surplus = jnp.where(inside, value, 0) - logsnr(process, t_inside)
  return t + jnp.where(inside, (surplus - jax.lax.stop_gradient(surplus)) / slope, 0)


def _floating(a):
  a = jnp.asarray(a)
  return a if jnp.issubdtype(a.dtype, jnp.floating) else a.astype(jnp.result_type(float))
