"""Exact predictors of any output, for data with E[x | z] in closed form.

Each minimizes the loss, so a loss can be compared with its minimum and a solver can run without
training. They compute E[x | z] and E[eps | z] and mix them, without remix, so they are finite at both
ends. Bind everything but (z, t) with one Partial.
"""

from __future__ import annotations

import jax
from jax import numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from eqflow import arrays
from eqflow.mix import mix
from eqflow.outputs import Output
from eqflow.processes import Process

Points = Float[Array, 'b d']
Times = Float[Array, 'b']


def gaussian(z: Points, t: Times, *, process: Process, output: Output, mean: Float[ArrayLike, 'd'],
             cov: Float[ArrayLike, 'd d']) -> Points:
  """E[output | z] for x ~ N(mean, cov): E[x | z] = mean + alpha cov S^-1 (z - alpha mean).

  S = alpha^2 cov + sigma^2 I is z's covariance; cov must be positive definite.
  """
  state = process(t)
  alpha, sigma = (jnp.broadcast_to(c, t.shape) for c in state)
  mean, cov = jnp.asarray(mean, z.dtype), jnp.asarray(cov, z.dtype)

  def one(z, alpha, sigma):
    spread = alpha**2 * cov + sigma**2 * jnp.eye(len(mean), dtype=z.dtype)
    whitened = jnp.linalg.solve(spread, z - alpha * mean)
    return mean + alpha * cov @ whitened, sigma * whitened

  x, eps = jax.vmap(one)(z, alpha, sigma)
  return mix(output(process, t), x, eps).astype(z.dtype)


def mixture(z: Points, t: Times, *, process: Process, output: Output, means: Float[ArrayLike, 'k d'],
            stds: Float[ArrayLike, 'k'], weights: Float[ArrayLike, 'k']) -> Points:
  """E[output | z] for x ~ sum_k w_k N(mean_k, std_k^2 I), stds positive."""
  state = process(t)
  alpha, sigma = (jnp.broadcast_to(c, t.shape) for c in state)

  def one(z, alpha, sigma):
    variance = (alpha * stds) ** 2 + sigma**2
    offset = z - alpha * means
    likelihood = -jnp.sum(offset**2, -1) / (2 * variance) - len(z) / 2 * jnp.log(variance)
    share = jax.nn.softmax(likelihood + jnp.log(weights))
    x = means + (alpha * stds**2 / variance)[:, None] * offset
    eps = (sigma / variance)[:, None] * offset
    return share @ x, share @ eps

  means, stds, weights = (jnp.asarray(a, z.dtype) for a in (means, stds, weights))
  x, eps = jax.vmap(one)(z, alpha, sigma)
  return mix(output(process, t), x, eps).astype(z.dtype)


def finite(z: Float[Array, 'b ...'], t: Times, *, process: Process, output: Output,
           data: Float[ArrayLike, 'n ...']) -> Float[Array, 'b ...']:
  """E[output | z] for x uniform among n records: the softmax of -|z - alpha x_i|^2/(2 sigma^2).

  A network that memorizes its training set converges to this. At sigma = 0 it is the nearest record,
  without noise.
  """
  state = process(t)
  alpha, sigma = (jnp.broadcast_to(c, t.shape) for c in state)
  records = arrays.rows(jnp.asarray(data, z.dtype))

  def one(z, alpha, sigma):
    square = jnp.sum(jnp.square(z - alpha * records), -1)
    farther = square - jnp.min(square)
    noisy = jnp.where(sigma == 0, 1, sigma)
    nearest = jnp.where(farther == 0, 0, -jnp.inf)
    share = jax.nn.softmax(jnp.where(sigma == 0, nearest, -farther / (2 * noisy**2)))
    x = share @ records
    return x, jnp.where(sigma == 0, 0, (z - alpha * x) / noisy)

  x, eps = jax.vmap(one)(arrays.rows(z), alpha, sigma)
  return mix(output(process, t), x, eps).reshape(z.shape).astype(z.dtype)
