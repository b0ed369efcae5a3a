"""Noise within a step: how much of the state's own noise is kept, and what replaces the rest."""

from __future__ import annotations

import math

from jax import numpy as jnp
from jaxtyping import ArrayLike

from eqflow import arrays
from eqflow.arrays import Coef, Data, Keys, Number, combine
from eqflow.mix import Mix


def step_ratio(here: Mix, there: Mix) -> Coef:
  """a = (sigma_s/alpha_s)/(sigma_t/alpha_t), below 1; 0 from pure noise and at data."""
  return there.eps * here.x / (there.x * here.eps)


def kept_by_churn(ratio: Coef, *, number: ArrayLike) -> Coef:
  """r = a^(c/(1 - c)): the fraction of sigma_s that is the state's own noise, at churn c in [0, 1]."""
  number = jnp.asarray(number, jnp.result_type(float))
  power = number / jnp.where(number == 1, 1, 1 - number)
  # Slope 0 where a is 0, which it is for all numbers of the process; else 0^(power - 1) is infinite.
  nothing = (ratio == 0) & (power > 0) & (power < 1)
  kept = jnp.where(nothing, 0, jnp.where(nothing, 1, ratio) ** power)
  return jnp.where(number == 1, 0, kept)


def kept_by_eta(ratio: Coef, *, number: ArrayLike) -> Coef:
  """r = sqrt(1 - eta^2 (1 - a^2)): the same at DDIM's eta in [0, 1]."""
  # Without the difference 1 - eta^2, in which a small a would lose its digits at eta 1.
  return root((1 - number) * (1 + number) + jnp.square(number * ratio))


def one_number(name: str, number: ArrayLike, *, most: Number = math.inf) -> None:
  """Raises ValueError unless `number` is one number in [0, most], the same for all examples."""
  arrays.check_scalars(**{name: number})
  if arrays.is_traced(number):
    return
  if jnp.ndim(number):
    raise ValueError(f'{name} has shape {jnp.shape(number)}: give one number, for all examples')
  if not 0 <= number <= most:
    limits = f'from 0 to {most:g}' if math.isfinite(most) else '0 or more'
    raise ValueError(f'{name}={number}: give a number, {limits}')


def renewed(mean: Data, sigma: Coef, kept: Coef, keys: Keys) -> Data:
  """mean + sigma sqrt(1 - kept^2) fresh noise."""
  # Rounding can leave kept above 1.
  spread = sigma * root((1 - kept) * (1 + kept))
  return combine((1, mean), (spread, arrays.noise_like(keys, mean)))


def root(a: Coef) -> Coef:
  """sqrt(max(a, 0)), of slope 0 where a <= 0: where no noise is added, none is for nearby numbers."""
  positive = a > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, a, 1)), 0)
