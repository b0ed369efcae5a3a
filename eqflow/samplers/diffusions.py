"""Diffusion coefficients w(t) of the sampling SDE dz = (u - w score) dt + sqrt(2 w) dW.

Each gives the same marginals: w = 0 is the probability-flow ODE, `sbdm` with norm 1 the reverse of the
forward SDE [Song+ 2011.13456].
"""

from __future__ import annotations

from jax import numpy as jnp
from jaxtyping import ArrayLike

from eqflow.arrays import Coef
from eqflow.processes import Process
from eqflow.processes.sde import square_diffusion


def constant(process: Process, t: Coef, *, norm: ArrayLike = 1.0) -> Coef:
  """w = norm."""
  return norm * jnp.ones_like(t)


def sigma(process: Process, t: Coef, *, norm: ArrayLike = 1.0) -> Coef:
  """w = norm sigma."""
  return norm * process(t).eps


def linear(process: Process, t: Coef, *, norm: ArrayLike = 1.0) -> Coef:
  """w = norm t."""
  return norm * t


def decreasing(process: Process, t: Coef, *, norm: ArrayLike = 1.0) -> Coef:
  """w = (1 - norm cos(pi t))^2/4: from (1 + norm)^2/4 at noise down to (1 - norm)^2/4 at data."""
  return jnp.square(1 - norm * jnp.cos(jnp.pi * t)) / 4


def increasing_decreasing(process: Process, t: Coef, *, norm: ArrayLike = 1.0) -> Coef:
  """w = norm sin^2(pi t): 0 at both ends."""
  return norm * jnp.square(jnp.sin(jnp.pi * t))


def sbdm(process: Process, t: Coef, *, norm: ArrayLike = 1.0) -> Coef:
  """w = norm g^2/2, eta^2 = norm: 1 is the reverse of the forward SDE; infinite where alpha is 0."""
  return norm * square_diffusion(process, t) / 2
