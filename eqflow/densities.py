"""When to look while training: densities of t, each its quantile function and its pdf.

u in (0, 1) comes from a key or from a low-discrepancy sequence, so every density can be stratified.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import numpy as jnp
from jax.scipy import special
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float

from eqflow.arrays import Coef, Keys, Number


class Density(NamedTuple):
  """t = quantile(u) for u uniform in (0, 1), and p(t)."""
  quantile: Callable[[Coef], Coef]
  pdf: Callable[[Coef], Coef]


def _uniform_quantile(u):
  return u


def _uniform_pdf(t):
  return jnp.ones_like(t)


uniform = Density(Partial(_uniform_quantile), Partial(_uniform_pdf))


def uniform_on(low: Number, high: Number) -> Density:
  """t uniform in (low, high): how a blind end is kept out of training."""
  if not low < high:
    raise ValueError(f'uniform_on({low}, {high}): low must be below high')
  return Density(Partial(_uniform_on_quantile, low=low, high=high),
                 Partial(_uniform_on_pdf, low=low, high=high))


def _uniform_on_quantile(u, *, low, high):
  # Rounding must not reach the ends, of which one may be blind.
  return jnp.clip(low + (high - low) * u, jnp.nextafter(low, high), jnp.nextafter(high, low))


def _uniform_on_pdf(t, *, low, high):
  return jnp.where((t >= low) & (t <= high), 1 / (high - low), 0) * jnp.ones_like(t)


def logit_normal(mean: ArrayLike, std: ArrayLike) -> Density:
  """log(t/(1 - t)) ~ N(mean, std^2): SD3's density on [0, 1] [Esser+ 2403.03206, eq. 19]."""
  return Density(Partial(_logit_normal_quantile, mean=mean, std=std),
                 Partial(_logit_normal_pdf, mean=mean, std=std))


def _logit_normal_quantile(u, *, mean, std):
  t = jax.nn.sigmoid(mean + std * special.ndtri(u))
  limits = jnp.finfo(t.dtype)
  return jnp.clip(t, limits.tiny, 1 - limits.epsneg)


def _logit_normal_pdf(t, *, mean, std):
  return jax.scipy.stats.norm.pdf(special.logit(t), mean, std) / (t * (1 - t))


def lognormal(mean: ArrayLike, std: ArrayLike) -> Density:
  """log t ~ N(mean, std^2): EDM's density of sigma, with P_mean and P_std."""
  return Density(Partial(_lognormal_quantile, mean=mean, std=std),
                 Partial(_lognormal_pdf, mean=mean, std=std))


def _lognormal_quantile(u, *, mean, std):
  return jnp.exp(mean + std * special.ndtri(u))


def _lognormal_pdf(t, *, mean, std):
  return jax.scipy.stats.norm.pdf(jnp.log(t), mean, std) / t


def draw(keys: Keys) -> Float[Array, 'b']:
  """u uniform in the open interval (0, 1), one per key: zeros do come up, and are moved off."""
  # In float32 whatever the default: 1 - 2**-23 is the largest draw, so the sum stays below 1.
  return jax.vmap(lambda key: jax.random.uniform(key, dtype=jnp.float32))(keys) + 2.0**-24


def low_discrepancy(k: ArrayLike, offset: ArrayLike) -> Float[Array, '...']:
  """u_k = frac(k/golden ratio + offset/2^32) in (0, 1): any run of k covers (0, 1) evenly.

  In uint32, where it neither drifts nor dies at large k; the 23 leading bits become a float32.
  """
  bits = jnp.asarray(k, jnp.uint32) * jnp.uint32(2654435769) + jnp.asarray(offset, jnp.uint32)
  return (bits >> 9).astype(jnp.float32) * 2.0**-23 + 2.0**-24
