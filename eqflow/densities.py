"""Densities of the time t in training, each a quantile function and a pdf.

u in (0, 1) comes from a key or from a low-discrepancy sequence, so every density can be stratified.
`adaptive` makes one that follows the loss.
"""

from __future__ import annotations

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jax.scipy import special
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float
import numpy as np

from eqflow import arrays, processes
from eqflow.arrays import Coef, Keys, Number
from eqflow.processes import Process


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
  """t uniform in (low, high), which keeps a blind end out of training."""
  arrays.check_scalars(low=low, high=high)
  if not np.all(np.asarray(low) < high):
    raise ValueError(f'uniform_on({low}, {high}): low must be below high')
  return Density(Partial(_uniform_on_quantile, low=low, high=high),
                 Partial(_uniform_on_pdf, low=low, high=high))


def _uniform_on_quantile(u, *, low, high):
  # Rounding must not reach the ends: an output may be blind there.
  return jnp.clip(low + (high - low) * u, jnp.nextafter(low, high), jnp.nextafter(high, low))


def _uniform_on_pdf(t, *, low, high):
  return jnp.where((t >= low) & (t <= high), 1 / (high - low), 0) * jnp.ones_like(t)


def logit_normal(mean: ArrayLike, std: ArrayLike) -> Density:
  """log(t/(1 - t)) ~ N(mean, std^2): SD3's density on [0, 1] [Esser+ 2403.03206, eq. 19]."""
  _check_normal('logit_normal', mean, std)
  return Density(Partial(_logit_normal_quantile, mean=mean, std=std),
                 Partial(_logit_normal_pdf, mean=mean, std=std))


def _logit_normal_quantile(u, *, mean, std):
  return _inside(jax.nn.sigmoid(mean + std * special.ndtri(u)))


def _inside(t):
  # Rounding must not reach 0 or 1, where an output may be blind.
  limits = jnp.finfo(t.dtype)
  return jnp.clip(t, limits.tiny, 1 - limits.epsneg)


def _logit_normal_pdf(t, *, mean, std):
  return jax.scipy.stats.norm.pdf(special.logit(t), mean, std) / (t * (1 - t))


def lognormal(mean: ArrayLike, std: ArrayLike) -> Density:
  """log t ~ N(mean, std^2): EDM's density of sigma, with P_mean and P_std."""
  _check_normal('lognormal', mean, std)
  return Density(Partial(_lognormal_quantile, mean=mean, std=std),
                 Partial(_lognormal_pdf, mean=mean, std=std))


def _check_normal(name, mean, std):
  arrays.check_scalars(mean=mean, std=std)
  if not arrays.is_traced(std) and not np.all(np.asarray(std) > 0):
    raise ValueError(f'{name}: std={std}: give a number above 0')


def _lognormal_quantile(u, *, mean, std):
  return jnp.exp(mean + std * special.ndtri(u))


def _lognormal_pdf(t, *, mean, std):
  return jax.scipy.stats.norm.pdf(jnp.log(t), mean, std) / t


def mode(scale: ArrayLike) -> Density:
  """t = u - s (sin^2(pi u/2) - u), s = scale: more (s > 0) or less of the middle of [0, 1].

  SD3's mode sampling with heavy tails [Esser+ 2403.03206, eq. 20]; their f falls from 1 to 0, so this
  is f(1 - u), with the same distribution. Raises ValueError outside -1 <= s <= 2/(pi - 2), where f is
  not monotone.
  """
  arrays.check_scalars(scale=scale)
  if not arrays.is_traced(scale) and not np.all(
      (np.asarray(scale) >= -1) & (np.asarray(scale) <= 2 / (math.pi - 2))):
    raise ValueError(f'mode({scale}): choose a scale from -1 to 2/(pi - 2) = 1.7519, so that t rises '
                     'with u')
  return Density(Partial(_mode_quantile, scale=scale), Partial(_mode_pdf, scale=scale))


def _mode(u, scale):
  return u - scale * (jnp.square(jnp.sin(jnp.pi / 2 * u)) - u)


def _mode_quantile(u, *, scale):
  return _inside(_mode(u, scale))


def _mode_pdf(t, *, scale):
  u = arrays.inverse(lambda u: _mode(u, scale), t, 0.0, 1.0)
  return 1 / (1 + scale - scale * jnp.pi / 2 * jnp.sin(jnp.pi * u))


def with_data(density: Density, share: Number) -> Density:
  """t = 0 (clean data) with probability `share`, else t from density.

  quantile(u) is 0 for u <= share, and density.quantile((u - share)/(1 - share)) above. For fields that
  must vanish on data, which few examples come near by chance. pdf is (1 - share) p(t), without the
  point mass at 0. Raises ValueError for a share outside [0, 1).
  """
  arrays.check_scalars(share=share)
  if not 0 <= share < 1:
    raise ValueError(f'with_data(share={share}): give a probability from 0 to below 1')
  return Density(Partial(_with_data_quantile, density=density, share=float(share)),
                 Partial(_with_data_pdf, density=density, share=float(share)))


def _with_data_quantile(u, *, density, share):
  u = jnp.asarray(u)
  at_data = u <= share
  # Rounding must not reach 1, where a quantile may be infinite.
  rest = jnp.minimum((u - share) / (1 - share), 1 - jnp.finfo(u.dtype).epsneg)
  t = density.quantile(jnp.where(at_data, 0.5, rest))
  return jnp.where(at_data, 0, t)


def _with_data_pdf(t, *, density, share):
  return (1 - share) * density.pdf(t)


def _cosmap_quantile(u):
  sin, cos = jnp.sin(jnp.pi / 2 * u), jnp.sin(jnp.pi / 2 * (1 - u))
  return _inside(sin / (sin + cos))


def _cosmap_pdf(t):
  return 2 / (jnp.pi * (jnp.square(t) + jnp.square(1 - t)))


# t/(1 - t) = tan(pi u/2): on the linear process, the log-SNR of the cosine process with uniform t
# [Esser+ 2403.03206, section 3.1].
cosmap = Density(Partial(_cosmap_quantile), Partial(_cosmap_pdf))


class Adaptive(NamedTuple):
  """A density that follows the loss: a histogram of losses, and two pure functions of it."""
  start: Any          # the empty histogram
  density: Callable   # histogram -> Density
  measure: Callable   # (histogram, t [b], loss [b]) -> histogram


def adaptive(*, process: Process, low: Number, high: Number, bins: Number = 100,
             keep: Number = 0.999) -> Adaptive:
  """p(lambda) proportional to the measured w(lambda) E|error|^2, over log-SNR in [low, high].

  The adaptive noise schedule of VDM++: the loss then weighs the same at every noise, and its
  variance falls, while with `weights.on_logsnr` its mean is the same integral [Kingma & Gao
  2303.00848]. p is constant within each of `bins` bins. Each example multiplies the
  sums of its bin by `keep`, so a bin averages about its last 1/(1 - keep) examples; an empty bin counts
  as an average one.

  measure takes times drawn from density(histogram) and losses weighted by `weights.on_logsnr`. On `edm`
  t grows until the log-SNR is `low`. Raises ValueError for a range that the process does not reach.
  """
  arrays.check_functions(process=process)
  arrays.check_scalars(low=low, high=high, bins=bins, keep=keep)
  if not low < high or bins != int(bins) or bins < 2 or not 0 < keep < 1:
    raise ValueError(f'adaptive(low={low}, high={high}, bins={bins}, keep={keep}): low must be below '
                     'high, bins a whole number of 2 or more, keep between 0 and 1')
  bound = dict(process=arrays.pytree(process), low=float(low), high=float(high))
  return Adaptive(jnp.zeros((2, int(bins))), Partial(_adapted, **bound, **_reach(process, low, high)),
                  Partial(_measured, keep=float(keep), **bound))


def _reach(process, low, high):
  """first and last, the times at which the log-SNR is high and low."""
  if arrays.is_traced(process):
    raise ValueError('the numbers of the process are traced: make an adaptive density outside jit')
  with jax.ensure_compile_time_eval(), jax.enable_x64(True):
    logsnr = lambda t: processes.logsnr(process, jnp.asarray(t, jnp.float64))
    # Most processes end at 1; EDM's t goes on.
    until = next((2.0**k for k in range(128) if not logsnr(2.0**k) > low), 1.0)
    times = np.asarray(processes.time_of_logsnr(process, jnp.asarray([high, low]), high=until))
    reached = logsnr(times.astype(np.float32))
  # Near noise, times in float32 are some way apart.
  if not np.allclose(reached, [high, low], atol=0.1):
    raise ValueError(f'log-SNR from {low} to {high} on {arrays.name_of(process)!r}, which in float32 '
                     f'goes from {reached[1]:.6g} to {reached[0]:.6g} there: choose both within')
  return dict(first=float(times[0]), last=float(times[1]))


def _adapted(histogram, **bound):
  return Density(Partial(_adaptive_quantile, histogram=histogram, **bound),
                 Partial(_adaptive_pdf, histogram=histogram, **bound))


def _shares(histogram):
  """The probability [bins] of each bin."""
  loss, count = histogram
  seen = count > 0
  average = jnp.sum(jnp.where(seen, loss / jnp.where(seen, count, 1), 0)) / jnp.maximum(seen.sum(), 1)
  # One average loss is added to each bin, so that no bin gets probability 0.
  height = (loss + average) / (count + 1)
  total = jnp.sum(height)
  return jnp.where(total > 0, height / jnp.where(total > 0, total, 1), 1 / len(count))


def _adaptive_quantile(u, *, histogram, process, low, high, first, last):
  share = _shares(histogram)
  edges = jnp.linspace(low, high, len(share) + 1)
  below = jnp.append(0, jnp.cumsum(share))
  # Noise, and so t, rises as log-SNR falls.
  value = jnp.interp((1 - u) * below[-1], below, edges)
  # Between the ends, so that rounding never returns a t with pdf 0.
  return processes.time_of_logsnr(process, value, low=first, high=last)


def _adaptive_pdf(t, *, histogram, process, low, high, first, last):
  p = _shares(histogram)[_bin(t, histogram, process, low, high)] * histogram.shape[1] / (high - low)
  inside = (t >= first) & (t <= last)
  return jnp.where(inside, p * jnp.abs(processes.logsnr_rate(process, t)), 0)


def _bin(t, histogram, process, low, high):
  bins = histogram.shape[1]
  place = (processes.logsnr(process, t) - low) / (high - low) * bins
  return jnp.clip(jnp.floor(place), 0, bins - 1).astype(int)


def _measured(histogram, t, loss, *, keep, process, low, high):
  bins = histogram.shape[1]
  at = _bin(t, histogram, process, low, high)
  # The loss is w E/p(lambda), with the p that t was drawn from.
  whole = loss * _shares(histogram)[at] * bins / (high - low)
  seen = jnp.stack([whole, jnp.ones_like(whole)]).astype(histogram.dtype)
  sums = jnp.zeros_like(histogram).at[:, at].add(jax.lax.stop_gradient(seen))
  return histogram * keep ** sums[1] + sums


def draw(keys: Keys) -> Float[Array, 'b']:
  """u uniform in the open interval (0, 1), one for each key."""
  arrays.check_keys(keys)
  # uniform includes 0. In float32 its largest number is 1 - 2**-23, so the sum stays below 1.
  return jax.vmap(lambda key: jax.random.uniform(key, dtype=jnp.float32))(keys) + 2.0**-24


def low_discrepancy(k: ArrayLike, offset: ArrayLike) -> Float[Array, '...']:
  """u_k = frac(k/golden ratio + offset/2^32) in (0, 1): any run of k covers (0, 1) evenly.

  Computed in uint32, exact at any k; the 23 leading bits become a float32.
  """
  bits = jnp.asarray(k, jnp.uint32) * jnp.uint32(2654435769) + jnp.asarray(offset, jnp.uint32)
  return (bits >> 9).astype(jnp.float32) * 2.0**-23 + 2.0**-24
