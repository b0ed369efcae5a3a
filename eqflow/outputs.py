"""Outputs, (process, t) -> Mix: what a network may predict, as vectors in the plane.

| output | coordinates (x, eps) | det(state, output) | blind where |
|---|---|---|---|
| x | (1, 0) | -sigma | sigma -> 0 |
| eps | (0, 1) | alpha | alpha -> 0 |
| v | (-sigma, alpha) | alpha^2 + sigma^2 | never |
| u | (alpha', sigma') | alpha sigma' - sigma alpha' | never on the linear process |
| displacement | (-1, 1) | alpha + sigma | never |
| score | (0, -1/sigma) | -alpha/sigma | alpha -> 0 |
| edm | (sigma, -sd^2 alpha)/(sd n) | -n/sd | never |
| equilibrium | (-c, c) | (alpha + sigma) c | at data, on purpose |
"""

from __future__ import annotations

from collections.abc import Callable

from jax import numpy as jnp
from jaxtyping import ArrayLike

from eqflow import processes
from eqflow.arrays import Coef
from eqflow.mix import Mix
from eqflow.processes import Process

Output = Callable[[Process, Coef], Mix]


def x(process: Process, t: Coef) -> Mix:
  """x = (1, 0): the data."""
  return Mix(jnp.ones_like(t), jnp.zeros_like(t))


def eps(process: Process, t: Coef) -> Mix:
  """eps = (0, 1): the noise [Ho+ 2006.11239]."""
  return Mix(jnp.zeros_like(t), jnp.ones_like(t))


def v(process: Process, t: Coef) -> Mix:
  """v = alpha eps - sigma x: the state turned by a right angle [Salimans & Ho 2202.00512]."""
  state = process(t)
  return Mix(-state.eps, state.x)


def u(process: Process, t: Coef) -> Mix:
  """u = dz/dt = alpha' x + sigma' eps: flow matching's velocity; eps - x on the linear process."""
  return processes.rate(process, t)


def displacement(process: Process, t: Coef) -> Mix:
  """eps - x = (-1, 1): the way from data to noise, on any process; u on the linear one."""
  return Mix(-jnp.ones_like(t), jnp.ones_like(t))


def score(process: Process, t: Coef) -> Mix:
  """-eps/sigma; its mean given z is grad log p(z)."""
  state = process(t)
  return Mix(jnp.zeros_like(t), -1 / state.eps)


def edm(process: Process, t: Coef, *, sigma_data: ArrayLike) -> Mix:
  """F = (sigma x - sd^2 alpha eps)/(sd n), n^2 = sigma^2 + sd^2 alpha^2, sd = sigma_data.

  EDM's network behind its preconditioning, on any process: of unit variance, and never blind
  [Karras+ 2206.00364, section 5]. For sd = 1 on a variance-preserving process it is -v.
  """
  state = process(t)
  n = jnp.sqrt(jnp.square(state.eps) + jnp.square(sigma_data * state.x))
  return Mix(state.eps / (sigma_data * n), -sigma_data * state.x / n)


def equilibrium(process: Process, t: Coef, *, decay: Callable) -> Mix:
  """(eps - x) c(gamma), gamma = alpha/(alpha + sigma): the field of Equilibrium Matching.

  The paper's sign: the field is a gradient, and one descends it. c vanishes at data, so that data
  are its equilibria [Wang & Du 2510.02300, section 3].
  """
  state = process(t)
  c = decay(state.x / (state.x + state.eps))
  return Mix(-c, c)


def transported(process: Process, t: Coef, *, output: Output, process_a: Process,
                time: Callable) -> Mix:
  """output(process_a, time(t)): the vector that a network trained on process_a gives on another.

  time comes from `processes.transport`; where it is NaN, the vector is NaN.
  """
  at = time(t)
  out = output(process_a, at)
  # x and eps do not depend on time: NaN, so that check_grid rejects times with no process_a.
  lost = jnp.isnan(at)
  return Mix(jnp.where(lost, jnp.nan, out.x), jnp.where(lost, jnp.nan, out.eps))


def constant_decay(gamma: Coef, *, gain: ArrayLike = 1.0) -> Coef:
  """c = gain: flow matching without time; its field does not vanish at data."""
  return gain * jnp.ones_like(gamma)


def linear_decay(gamma: Coef, *, gain: ArrayLike = 1.0) -> Coef:
  """c = gain (1 - gamma) [Wang & Du 2510.02300, eq. 4]."""
  return gain * (1 - gamma)


def truncated_decay(gamma: Coef, *, start: ArrayLike,
                    gain: ArrayLike = 1.0) -> Coef:
  """c = gain for gamma <= start, then falling linearly to 0 at gamma = 1 [eq. 5]."""
  return gain * jnp.where(gamma <= start, 1, (1 - gamma) / (1 - start))


def piecewise_decay(gamma: Coef, *, start: ArrayLike, height: ArrayLike,
                    gain: ArrayLike = 1.0) -> Coef:
  """c = gain times the line from `height` at 0 to 1 at `start`, then to 0 at gamma = 1 [eq. 6]."""
  rising = height - (height - 1) / start * gamma
  return gain * jnp.where(gamma <= start, rising, (1 - gamma) / (1 - start))
