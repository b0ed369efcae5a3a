"""Weights, (process, t) -> [b]: the weight of a squared error at time t.

A loss is, up to a constant, int w(lambda) E|eps error|^2 dlambda over log-SNR, and the field's
objectives differ in w alone. `implied` gives the w of any density, output and weight. `on_logsnr` is
its inverse, from a w to the weight for a given density: the loss is then the same integral for every
process and density.

| objective | w(lambda) |
|---|---|
| ELBO, with its noise schedule free [2107.00630] | `elbo` |
| flow matching; v's error on the cosine process | `flow_matching`; 2/pi of it |
| EDM | `edm_logsnr` |
| Stable Diffusion 3 | `sd3` |
| InDI, x's error on the linear process | `indi` |
| P2; eps' error on the cosine process | `p2`; with gamma = 0 |
| min-SNR-gamma | `min_snr` |
| sigmoid, on eps | `sigmoid` |

A constant factor is free: the rows of flow matching and EDM are the implied weights themselves, rows
on the cosine process omit the 1/(2 pi) of its density.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax import numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import ArrayLike

from eqflow import outputs, processes
from eqflow.arrays import Coef
from eqflow.densities import Density
from eqflow.mix import gain
from eqflow.outputs import Output
from eqflow.processes import Process

Weight = Callable[[Process, Coef], Coef]


def ones(process: Process, t: Coef) -> Coef:
  """w = 1."""
  return jnp.ones_like(t)


def edm(process: Process, t: Coef, *, sigma_data: ArrayLike) -> Coef:
  """(s^2 + sd^2)/(s sd)^2, s = sigma/alpha, sd = sigma_data: EDM's weight on the error of x.

  The square of the gain from x to EDM's F, so that F's error counts the same at every s.
  """
  s = processes.noise_to_signal(process, t)
  return 1 / jnp.square(s) + 1 / jnp.square(jnp.asarray(sigma_data, jnp.result_type(s)))


def on_logsnr(process: Process, t: Coef, *, w: Callable[[Coef], Coef], density: Density) -> Coef:
  """w(lambda) |d lambda/dt|/p(t): weighs the error of eps so that the loss is int w err dlambda.

  Use with space eps: E_t[weight err] = int w(lambda) err dlambda [Kingma & Gao 2303.00848].
  """
  speed = jnp.abs(processes.logsnr_rate(process, t))
  return w(processes.logsnr(process, t)) * speed / density.pdf(t)


def implied(process: Process, t: Coef, *, density: Density, output: Output, weight: Weight = ones,
            space: Output | None = None) -> Coef:
  """weight(t) gain(space <- eps)^2 p(t)/|d lambda/dt|: w(lambda) at t, of the loss with these.

  E_t[weight err] = int w(lambda) E|eps error|^2 dlambda, err the squared error in `space`, by
  default the output's own. The inverse of `on_logsnr`: with that weight and space eps it is its w.
  """
  to = (space or output)(process, t)
  stretch = gain(to, state=process(t), out=outputs.eps(process, t))
  speed = jnp.abs(processes.logsnr_rate(process, t))
  return weight(process, t) * jnp.square(stretch) * density.pdf(t) / speed


def elbo(logsnr: Coef) -> Coef:
  """w(lambda) = 1: half the integral is the ELBO's loss, nats per dimension [Kingma+ 2107.00630]."""
  return jnp.ones_like(logsnr)


def flow_matching(logsnr: Coef) -> Coef:
  """w(lambda) = e^(-lambda/2)/2: u on the linear process, t uniform [Lipman+ 2210.02747].

  2/pi of it is v on the cosine process, t uniform: the two are one weighting.
  """
  return jnp.exp(-logsnr / 2) / 2


def indi(logsnr: Coef) -> Coef:
  """w(lambda) = e^-lambda sech^2(lambda/4)/8: x on the linear process, t uniform [2303.11435]."""
  return jnp.exp(-logsnr) / jnp.square(jnp.cosh(logsnr / 4)) / 8


def edm_logsnr(logsnr: Coef, *, mean: ArrayLike, std: ArrayLike, sigma_data: ArrayLike) -> Coef:
  """w(lambda) = N(lambda; -2 mean, (2 std)^2) (e^-lambda/sd^2 + 1): EDM's F, sigma lognormal.

  mean and std are EDM's P_mean and P_std, -1.2 and 1.2 there with sd = sigma_data = 0.5
  [Karras+ 2206.00364, table 1].
  """
  p = norm.pdf(logsnr, -2 * jnp.asarray(mean), 2 * jnp.asarray(std))
  return p * (jnp.exp(-logsnr) / jnp.square(jnp.asarray(sigma_data)) + 1)


def sd3(logsnr: Coef, *, mean: ArrayLike, std: ArrayLike) -> Coef:
  """w(lambda) = N(lambda; -2 mean, (2 std)^2) (1 + e^(-lambda/2))^2: u, t logit-normal.

  On the linear process; Stable Diffusion 3 takes mean 0 and std 1 [Esser+ 2403.03206].
  """
  p = norm.pdf(logsnr, -2 * jnp.asarray(mean), 2 * jnp.asarray(std))
  return p * jnp.square(1 + jnp.exp(-logsnr / 2))


def p2(logsnr: Coef, *, gamma: ArrayLike, k: ArrayLike = 1.0) -> Coef:
  """w(lambda) = sech(lambda/2)/(k + e^lambda)^gamma, on the eps error [Choi+ 2204.00227].

  On the cosine process with uniform t. gamma = 0 is the plain eps error.
  """
  return (k + jnp.exp(logsnr)) ** -jnp.asarray(gamma) / jnp.cosh(logsnr / 2)


def min_snr(logsnr: Coef, *, gamma: ArrayLike) -> Coef:
  """w(lambda) = sech(lambda/2) min(1, gamma e^-lambda), on the eps error [Hang+ 2303.09556].

  min(SNR, gamma)/SNR on the cosine process with uniform t, where the sech is the density of lambda.
  """
  return jnp.minimum(1, gamma * jnp.exp(-logsnr)) / jnp.cosh(logsnr / 2)


def sigmoid(logsnr: Coef, *, bias: ArrayLike) -> Coef:
  """w(lambda) = sigmoid(bias - lambda), on the eps error [Hoogeboom+ 2410.19324].

  e^bias sigmoid(lambda - bias) on the error of x is the same.
  """
  return jax.nn.sigmoid(bias - logsnr)


def monotone(logsnr: Coef, *, w: Callable[[Coef], Coef], peak: ArrayLike) -> Coef:
  """w(max(lambda, peak)): w, constant at its maximum on the noisy side of its peak.

  A w that never rises with log-SNR makes the loss an ELBO of noised data [Kingma & Gao 2303.00848,
  section 4].
  """
  return w(jnp.maximum(logsnr, peak))
