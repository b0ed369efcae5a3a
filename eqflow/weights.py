"""Weights, (process, t) -> [b]: what a squared error counts for at time t.

A weighting given as a function w of the log-SNR, on the eps error and the integral over log-SNR,
is turned into one of t by `on_logsnr`, which divides the density out: the loss is then the same
integral, whatever process and density draw it.
"""

from collections.abc import Callable

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from jaxtyping import ArrayLike

from eqflow import processes
from eqflow.arrays import Coef
from eqflow.processes import Process
from eqflow.times import Density

Weight = Callable[[Process, Coef], Coef]


@Partial
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
  """w(lambda) |d lambda/dt|/p(t): a weight on the error of eps whose loss is int w dlambda.

  Use with space eps: E_t[weight err] = int w(lambda) err dlambda [Kingma & Gao 2303.00848].
  """
  speed = jnp.abs(processes.logsnr_rate(process, t))
  return w(processes.logsnr(process, t)) * speed / density.pdf(t)


def sigmoid(logsnr: Coef, *, bias: ArrayLike) -> Coef:
  """w(lambda) = sigmoid(bias - lambda), on the eps error [Hoogeboom+ 2410.19324]."""
  return jax.nn.sigmoid(bias - logsnr)


def min_snr(logsnr: Coef, *, gamma: ArrayLike) -> Coef:
  """w(lambda) = sech(lambda/2) min(1, gamma e^-lambda), on the eps error [Hang+ 2303.09556].

  min(SNR, gamma)/SNR on the cosine process with uniform t, whose density over lambda is the sech.
  """
  return jnp.minimum(1, gamma * jnp.exp(-logsnr)) / jnp.cosh(logsnr / 2)
