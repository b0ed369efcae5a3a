"""Processes, t -> Mix(alpha, sigma): how data turns into noise, z = alpha x + sigma eps.

t = 0 is data and t = 1 is noise (EDM's t is its sigma, from 0 up). A process is one function; its
velocity and its log-SNR follow. Those without numbers are Partials and so jit arguments as they
stand; the others get their numbers from one `jax.tree_util.Partial`.
"""

from collections.abc import Callable

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float

from eqflow.arrays import Coef, Number
from eqflow.mix import Mix

Process = Callable[[Coef], Mix]


@Partial
def linear(t: Coef) -> Mix:
  """(1 - t, t): flow matching, rectified flow, Equilibrium Matching."""
  return Mix(1 - t, t)


@Partial
def cosine(t: Coef) -> Mix:
  """(cos(pi t/2), sin(pi t/2)): a rotation at constant speed, alpha^2 + sigma^2 = 1.

  alpha is written as a sine: exactly 0 at t = 1, where a float32 cosine is negative.
  """
  return Mix(jnp.sin(jnp.pi / 2 * (1 - t)), jnp.sin(jnp.pi / 2 * t))


def variance_preserving(t: Coef, *, beta_min: ArrayLike,
                        beta_max: ArrayLike) -> Mix:
  """log alpha = -t^2 (beta_max - beta_min)/4 - t beta_min/2, sigma^2 = 1 - alpha^2.

  DDPM in continuous time [Song+ 2011.13456, appendix C]; 0.1 and 20 there. Its velocity is infinite
  at t = 0.
  """
  log_alpha = -t * t * (beta_max - beta_min) / 4 - t * beta_min / 2
  return Mix(jnp.exp(log_alpha), jnp.sqrt(-jnp.expm1(2 * log_alpha)))


@Partial
def edm(t: Coef) -> Mix:
  """(1, t): EDM's variance-exploding process, whose t is its sigma in [0, inf)."""
  return Mix(jnp.ones_like(t), t)


def scaled(t: Coef, *, process: Process, scale: Callable) -> Mix:
  """(c alpha, c sigma), c = scale(t) > 0: the same noise-to-signal ratio at every t.

  DDIM's samples, divided by the scale at the end, do not change; Euler's do.
  """
  state, c = process(t), scale(t)
  return Mix(c * state.x, c * state.eps)


def shifted(t: Coef, *, process: Process, shift: ArrayLike) -> Mix:
  """process(shift t / (1 + (shift - 1) t)): the same ends, more (shift > 1) time spent in noise.

  On the linear process sigma/alpha is multiplied by `shift`, so the log-SNR falls by 2 log(shift)
  at every t [Esser+ 2403.03206, section 5.3.2].
  """
  # The denominator is 1 + (shift - 1) t, written so that 1 is mapped to 1 exactly.
  return process(shift * t / (shift * t + (1 - t)))


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


def time_of_logsnr(process: Process, value: Float[ArrayLike, '...'], *, low: Number = 0.0,
                   high: Number = 1.0) -> Float[Array, '...']:
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
