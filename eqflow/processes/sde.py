"""Drift f and diffusion g of a process, and the process of a drift and a diffusion.

Forward: dz = f z dt + g dW. Backward, with the same marginals for every eta >= 0:
dz = (f z - (1 + eta^2)/2 g^2 score) dt + eta g dW = (u - w score) dt + sqrt(2 w) dW.
Here w = (eta g)^2/2, and eta may depend on time: 0 is the probability-flow ODE, 1 the SDE of DDPM
[Song+ 2011.13456]. `samplers.sde` takes w as its diffusion.
"""

from __future__ import annotations

from collections.abc import Callable

from jax import numpy as jnp
import numpy as np

from eqflow import processes
from eqflow.arrays import Coef
from eqflow.mix import Mix
from eqflow.processes.base import Process, root


def drift(process: Process, t: Coef) -> Coef:
  """f = d log(alpha)/dt."""
  return processes.rate(process, t).x / process(t).x


def square_diffusion(process: Process, t: Coef) -> Coef:
  """g^2 = 2 alpha sigma d(sigma/alpha)/dt."""
  state, velocity = process(t), processes.rate(process, t)
  return 2 * state.eps * (velocity.eps - state.eps * velocity.x / state.x)


def process(t: Coef, *, drift: Callable[[Coef], Coef],
            square_diffusion: Callable[[Coef], Coef]) -> Mix:
  """alpha = exp(int_0^t f), sigma = alpha sqrt(int_0^t g^2/alpha^2): the process of f(t) and g^2(t).

  Computed with 12 nodes on each of 24 panels that halve towards t, because f may grow like 1/(1 - t).
  f and g^2 take arrays of times of any shape. NaN where |f| t >= 2^24, which no panel resolves: end
  the grid before a time at which f is infinite.
  """
  t = jnp.asarray(t)
  t = t.astype(jnp.result_type(t, float))
  places, widths, whole, ahead = (jnp.asarray(a, t.dtype) for a in _RULE)
  at = t[..., None, None] * places
  values = lambda function: t[..., None, None] * jnp.broadcast_to(function(at), at.shape)
  slopes = values(drift)
  panels = (slopes * whole).sum(-1)
  later = jnp.cumsum(panels[..., ::-1], -1)[..., ::-1] - panels
  # int f from each node to t: the rest of its panel, and the panels after it.
  left = widths * jnp.matmul(slopes, ahead, precision='highest') + later[..., None]
  square = (values(square_diffusion) * whole * jnp.exp(2 * left)).sum((-2, -1))
  resolved = abs(drift(t)) * t < 2.0**_PANELS
  alpha, sigma = jnp.exp(panels.sum(-1)), root(square)
  return Mix(jnp.where(resolved, alpha, jnp.nan), jnp.where(resolved, sigma, jnp.nan))


_PANELS = 24


def _rule(order=12):
  """The Gauss-Legendre rule on panels of [0, 1] that halve towards 1.

  Returns nodes [panels, order], widths of the panels [panels, 1], weights [panels, order], and
  integrals [j, i] on a panel of width 1: from node i to its end, of the polynomial that is 1 at node j
  and 0 at the others.
  """
  nodes, weights = np.polynomial.legendre.leggauss(order)
  edges = 1 - np.append(0.5 ** np.arange(_PANELS), 0)
  widths = np.diff(edges)[:, None]
  k = np.arange(order)
  legendre = np.polynomial.legendre.legvander(nodes, order).T
  # L_j = sum_k (k + 1/2) w_j P_k(x_j) P_k; int_x^1 P_k = (P_(k-1) - P_(k+1))(x)/(2 k + 1).
  ends = np.vstack([1 - nodes, (legendre[:-2] - legendre[2:]) / (2 * k[1:, None] + 1)])
  ahead = ((k[:, None] + 0.5) * weights * legendre[:-1]).T @ ends / 2
  return edges[:-1, None] + widths * (nodes + 1) / 2, widths, widths * weights / 2, ahead


_RULE = _rule()
