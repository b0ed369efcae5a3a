"""Tables of DDPM's discrete time, and their processes.

A table is alpha_bar_k = alpha_k^2 for k = 0 to T - 1, numpy float64. Entry k is the state after k + 1
noising steps, t = (k + 1)/T. `table` turns it into a process, which is defined between the entries too.
"""

from __future__ import annotations

from jax import numpy as jnp
from jax.tree_util import Partial
from jaxtyping import ArrayLike, Float
import numpy as np

from eqflow.arrays import Coef, Number
from eqflow.mix import Mix
from eqflow.processes.base import Process

Table = Float[np.ndarray, 'T']


def linear(num: int = 1000, *, beta_min: Number = 1e-4, beta_max: Number = 0.02) -> Table:
  """prod (1 - beta), beta even from beta_min to beta_max: DDPM [Ho+ 2006.11239, section 4]."""
  return _cumulated(np.linspace(beta_min, beta_max, num))


def scaled_linear(num: int = 1000, *, beta_min: Number = 0.00085,
                  beta_max: Number = 0.012) -> Table:
  """prod (1 - beta), sqrt(beta) even between the ends' square roots: Stable Diffusion's table."""
  return _cumulated(np.linspace(np.sqrt(beta_min), np.sqrt(beta_max), num) ** 2)


def cosine(num: int = 1000, *, offset: Number = 0.008, max_beta: Number = 0.999) -> Table:
  """prod (1 - beta), beta = min(max_beta, 1 - f((k+1)/T)/f(k/T)), f = cos^2: improved DDPM's.

  f(t) = cos^2(pi/2 (t + offset)/(1 + offset)) [Nichol & Dhariwal 2102.09672, eq. 17].
  """
  f = np.cos(np.pi / 2 * (np.linspace(0, 1, num + 1) + offset) / (1 + offset)) ** 2
  return _cumulated(np.minimum(max_beta, 1 - f[1:] / f[:-1]))


def _cumulated(betas):
  if not ((betas > 0) & (betas < 1)).all():
    raise ValueError(f'betas from {betas.min():.4g} to {betas.max():.4g} are not between 0 and 1; '
                     'change beta_min, beta_max or max_beta')
  return np.cumprod(1 - betas)


def zero_terminal_snr(alphas_cumprod: Table) -> Table:
  """The table shifted and scaled in alpha, so that alpha_T = 0 and alpha of the first step is the same.

  Outputs that are blind at pure noise (eps, score) cannot be trained or sampled there
  [Lin+ 2305.08891, algorithm 1].
  """
  alpha = np.sqrt(check(alphas_cumprod))
  return np.square((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1]))


def check(alphas_cumprod: Table) -> Table:
  """The table as float64. Raises ValueError unless it falls from at most 1 to no less than 0."""
  table = np.asarray(alphas_cumprod, np.float64)
  if table.ndim != 1 or len(table) < 2:
    raise ValueError(f'alphas_cumprod of shape {table.shape}: give a list of two or more numbers')
  if not np.isfinite(table).all():
    at = int(np.argmin(np.isfinite(table)))
    raise ValueError(f'alphas_cumprod[{at}]={table[at]} is not finite: give finite, falling numbers')
  if (np.diff(table) >= 0).any():
    at = int(np.argmax(np.diff(table) >= 0))
    raise ValueError(f'alphas_cumprod[{at}]={table[at]:.6g} is followed by {table[at + 1]:.6g}: '
                     'each step adds noise, so numbers fall; give the cumulative product of 1 - beta')
  if table[0] > 1 or table[-1] < 0:
    raise ValueError(f'alphas_cumprod from {table[0]:.6g} to {table[-1]:.6g}: squares of alpha are '
                     'in [0, 1]; give the cumulative product of 1 - beta')
  return table


def discrete(t: Coef, *, angles: Float[ArrayLike, 'n'],
             complements: Float[ArrayLike, 'n'] | None = None) -> Mix:
  """(cos a, sin a), a = angles[T t], linear between the entries: a table of T steps, T = n - 1.

  angles come from `table_angles`; `table` also binds complements = pi/2 - angles, since float32 would
  lose their digits near pi/2. NaN outside [0, 1].
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


def table(alphas_cumprod: Table) -> Process:
  """The process of a table of alpha_bar: `discrete`, exact at its entries in float32 too.

  Raises as `table_angles` does.
  """
  known = check(alphas_cumprod)
  return Partial(discrete, angles=table_angles(known), complements=np.append(
      np.pi / 2, np.arctan2(np.sqrt(known), np.sqrt(1 - known))))


def table_angles(alphas_cumprod: Table) -> Float[np.ndarray, 'n']:
  """atan2(sigma, alpha) at t = 0, 1/T, ..., 1 for alpha = sqrt(alphas_cumprod), float64 [T + 1].

  The first angle is 0, clean data; entry k of the table is at t = (k + 1)/T. Raises ValueError
  for a table that does not fall, leaves [0, 1] or is not finite.
  """
  table = check(alphas_cumprod)
  return np.append(0.0, np.arctan2(np.sqrt(1 - table), np.sqrt(table)))
