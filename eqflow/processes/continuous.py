"""Processes of continuous time, t -> Mix(alpha, sigma).

t = 0 is data and t = 1 is noise (EDM's t is its sigma, from 0 up). Bind the numbers of a process with
one `jax.tree_util.Partial`, so that they are arguments of the compiled function.
"""

from __future__ import annotations

from collections.abc import Callable

from jax import numpy as jnp
from jaxtyping import ArrayLike

from eqflow.arrays import Coef
from eqflow.mix import Mix
from eqflow.processes.base import Process, root


def linear(t: Coef) -> Mix:
  """(1 - t, t): flow matching, rectified flow, Equilibrium Matching."""
  return Mix(1 - t, t)


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
  return Mix(jnp.exp(log_alpha), root(-jnp.expm1(2 * log_alpha)))


def sub_vp(t: Coef, *, beta_min: ArrayLike, beta_max: ArrayLike) -> Mix:
  """alpha of `variance_preserving`, sigma = 1 - alpha^2: less noise at every t, the same ends.

  Its velocity is bounded at t = 0 [Song+ 2011.13456, appendix C].
  """
  log_alpha = _log_alpha(t, beta_min, beta_max)
  return Mix(jnp.exp(log_alpha), -jnp.expm1(2 * log_alpha))


def _log_alpha(t, beta_min, beta_max):
  # NaN outside [0, 1], so that check_grid rejects grids that leave it.
  inside = (t >= 0) & (t <= 1)
  return jnp.where(inside, -t * t * (beta_max - beta_min) / 4 - t * beta_min / 2, jnp.nan)


def edm(t: Coef) -> Mix:
  """(1, t): EDM's variance-exploding process; t is its sigma, in [0, inf)."""
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
