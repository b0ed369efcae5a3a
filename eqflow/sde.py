"""Two languages of one thing: (f, g, eta) of diffusion, (alpha, sigma, eps) of stochastic flow.

Forward: dz = f z dt + g dW. Backward, with the same marginals for every eta >= 0:
dz = (f z - (1 + eta^2)/2 g^2 score) dt + eta g dW = (u - w score) dt + sqrt(2 w) dW, where
w = (eta g)^2/2 may be any function of time: eta = 0 is the probability-flow ODE, 1 the SDE of DDPM
[Song+ 2011.13456].
"""

from collections.abc import Callable

from jax import numpy as jnp
from jaxtyping import ArrayLike
import numpy as np

from eqflow import processes
from eqflow.arrays import Coef
from eqflow.mix import Mix
from eqflow.processes import Process


def drift(process: Process, t: Coef) -> Coef:
  """f = d log(alpha)/dt."""
  return processes.rate(process, t).x / process(t).x


def square_diffusion(process: Process, t: Coef) -> Coef:
  """g^2 = 2 alpha sigma d(sigma/alpha)/dt."""
  state, velocity = process(t), processes.rate(process, t)
  return 2 * state.eps * (velocity.eps - state.eps * velocity.x / state.x)


def stochasticity(process: Process, t: Coef, *, noise: ArrayLike) -> Coef:
  """eta = noise/g: which share of the forward noise g a backward SDE with dz = ... + noise dW has."""
  return noise / jnp.sqrt(square_diffusion(process, t))


def noise(process: Process, t: Coef, *, eta: ArrayLike) -> Coef:
  """eta g: the noise of the backward SDE, the eps of stochastic interpolants."""
  return eta * jnp.sqrt(square_diffusion(process, t))


def process(t: Coef, *, drift: Callable[[Coef], Coef],
            square_diffusion: Callable[[Coef], Coef]) -> Mix:
  """alpha = exp(int_0^t f), sigma = alpha sqrt(int_0^t g^2/alpha^2): the process of f(t) and g^2(t).

  By Gauss-Legendre's rule with 32 nodes; f and g^2 take arrays of times.
  """
  def integral(function, t):
    t = jnp.asarray(t)
    values = jnp.stack([weight * function(t * node) for node, weight in zip(_NODES, _WEIGHTS)])
    return t * values.sum(axis=0)

  def log_alpha(t):
    return integral(drift, t)

  growth = integral(lambda t: square_diffusion(t) * jnp.exp(-2 * log_alpha(t)), t)
  alpha = jnp.exp(log_alpha(t))
  return Mix(alpha, alpha * jnp.sqrt(growth))


_NODES, _WEIGHTS = (((a + 1) / 2).tolist() if i == 0 else (a / 2).tolist()
                    for i, a in enumerate(np.polynomial.legendre.leggauss(32)))


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
  """w = norm sin^2(pi t): none at either end."""
  return norm * jnp.square(jnp.sin(jnp.pi * t))


def sbdm(process: Process, t: Coef, *, norm: ArrayLike = 1.0) -> Coef:
  """w = norm g^2/2, eta^2 = norm: 1 is the reverse of the forward SDE; infinite where alpha is 0."""
  return norm * square_diffusion(process, t) / 2
