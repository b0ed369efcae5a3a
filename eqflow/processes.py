"""Processes, t -> Mix(alpha, sigma): how data turns into noise, z = alpha x + sigma eps.

t = 0 is data and t = 1 is noise (EDM's t is its sigma, from 0 up). A process is one function; its
velocity and its log-SNR follow. Those without numbers are Partials and so jit arguments as they
stand; the others get their numbers from one `jax.tree_util.Partial`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float
import numpy as np

from eqflow import arrays, tables
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
  log_alpha = _log_alpha(t, beta_min, beta_max)
  return Mix(jnp.exp(log_alpha), jnp.sqrt(-jnp.expm1(2 * log_alpha)))


def sub_vp(t: Coef, *, beta_min: ArrayLike, beta_max: ArrayLike) -> Mix:
  """alpha of `variance_preserving`, sigma = 1 - alpha^2: less noise at every t, the same ends.

  Of bounded velocity at t = 0 [Song+ 2011.13456, appendix C].
  """
  log_alpha = _log_alpha(t, beta_min, beta_max)
  return Mix(jnp.exp(log_alpha), -jnp.expm1(2 * log_alpha))


def _log_alpha(t, beta_min, beta_max):
  # No number outside [0, 1], which no network has seen; a grid that leaves it is so refused.
  inside = (t >= 0) & (t <= 1)
  return jnp.where(inside, -t * t * (beta_max - beta_min) / 4 - t * beta_min / 2, jnp.nan)


def discrete(t: Coef, *, angles: Float[ArrayLike, 'n'],
             complements: Float[ArrayLike, 'n'] | None = None) -> Mix:
  """(cos a, sin a), a = angles[T t], linear between the entries: a table of T steps, T = n - 1.

  angles come from `table_angles`; `table` also binds their complements to pi/2, which float32 cannot
  tell of an angle near pi/2. Not a number outside [0, 1].
  """
  last = len(angles) - 1
  place = jnp.asarray(t) * last
  k = jnp.clip(jnp.floor(place), 0, last - 1).astype(int)
  inside = (place >= 0) & (place <= last)

  def between(entries):
    entries = jnp.asarray(entries)
    return jnp.where(inside, entries[k] + (place - k) * (entries[k + 1] - entries[k]), jnp.nan)

  angle = between(angles)
  # A sine of the complement is exactly 0 at a right angle, where alpha_bar is 0.
  complement = jnp.pi / 2 - angle if complements is None else between(complements)
  return Mix(jnp.sin(complement), jnp.sin(angle))


def table(alphas_cumprod: tables.Table) -> Process:
  """The process of a table of alpha_bar: `discrete`, exact at its entries in float32 too.

  Raises as `table_angles` does.
  """
  known = tables.check(alphas_cumprod)
  return Partial(discrete, angles=table_angles(known), complements=np.append(
      np.pi / 2, np.arctan2(np.sqrt(known), np.sqrt(1 - known))))


def table_angles(alphas_cumprod: tables.Table) -> Float[np.ndarray, 'n']:
  """atan2(sigma, alpha) at t = 0, 1/T, ..., 1 for alpha = sqrt(alphas_cumprod), float64 [T + 1].

  The first angle is 0, clean data; entry k of the table stands at t = (k + 1)/T. Raises ValueError
  for a table that does not fall, leaves [0, 1] or is not finite.
  """
  table = tables.check(alphas_cumprod)
  return np.append(0.0, np.arctan2(np.sqrt(1 - table), np.sqrt(table)))


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


def logsnr_shifted(t: Coef, *, process: Process, shift: ArrayLike) -> Mix:
  """process(t) with log-SNR lambda + shift and the same alpha^2 + sigma^2.

  At a resolution higher by r, noise averages out over r^2 pixels: shift = -2 log(r) makes up for
  it [Hoogeboom+ 2301.11093, section 3.1].
  """
  state = process(t)
  alpha, sigma = state.x * jnp.exp(shift / 4), state.eps * jnp.exp(-shift / 4)
  c = jnp.hypot(state.x, state.eps) / jnp.hypot(alpha, sigma)
  return Mix(c * alpha, c * sigma)


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


def _floating(a):
  a = jnp.asarray(a)
  return a if jnp.issubdtype(a.dtype, jnp.floating) else a.astype(jnp.result_type(float))
