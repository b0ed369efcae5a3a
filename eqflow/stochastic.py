"""What solvers that draw share, and the sampling SDE for any diffusion coefficient.

A step keeps a share of the state's noise and replaces the rest by fresh noise.
"""

from collections.abc import Callable

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from jaxtyping import ArrayLike

from eqflow import arrays, outputs, processes, sde as coefficients
from eqflow.arrays import Coef, Data, Keys, combine
from eqflow.mix import Mix, remix
from eqflow.outputs import Output
from eqflow.processes import Process
from eqflow.solver import Solver, assemble


def step_ratio(here: Mix, there: Mix) -> Coef:
  """a = (sigma_s/alpha_s)/(sigma_t/alpha_t); 1 where a time repeats at either end, which is 0/0."""
  area = there.x * here.eps
  return jnp.where(area == 0, 1, there.eps * here.x / jnp.where(area == 0, 1, area))


def kept_by_churn(ratio: Coef, *, number: ArrayLike) -> Coef:
  """r = a^(c/(1 - c)): the share of sigma_s that is the state's own noise, at churn c in [0, 1]."""
  # An array, so that churn 1 divides to inf and keeps 0 ** inf = 0, but 1 ** inf = 1.
  number = jnp.asarray(number, jnp.result_type(float))
  return ratio ** (number / (1 - number))


def kept_by_eta(ratio: Coef, *, number: ArrayLike) -> Coef:
  """r = sqrt(1 - eta^2 (1 - a^2)): the same at DDIM's eta in [0, 1]."""
  return jnp.sqrt(1 - jnp.square(number) * (1 - ratio) * (1 + ratio))


def one_number(name: str, number: ArrayLike) -> None:
  """Raises ValueError for an array: how much noise is put back is the same for all examples."""
  if not arrays.is_traced(number) and jnp.ndim(number):
    raise ValueError(f'{name} of shape {jnp.shape(number)}: give one number, for all examples')


def renewed(mean: Data, sigma: Coef, kept: Coef, keys: Keys) -> Data:
  """mean + sigma sqrt(1 - kept^2) fresh noise."""
  # Where s = t, rounding can leave kept above 1.
  spread = sigma * root((1 - kept) * (1 + kept))
  return combine((1, mean), (spread, arrays.noise_like(keys, mean)))


def root(a: Coef) -> Coef:
  """sqrt(max(a, 0)), of slope 0 where a <= 0: a step of no length draws no noise, differentiably."""
  positive = a > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, a, 1)), 0)


def sde(process: Process, output: Output, *, diffusion: Callable | None = None,
        last: Callable | None = None) -> Solver:
  """z_s = z_t + (s - t)(u - w score) + sqrt(2 w (t - s)) noise: Euler-Maruyama, w = diffusion.

  diffusion (process, t) -> w is any of `eqflow.sde`, by default sigma; all have the same marginals
  [Ma+ 2401.08740]. The step to s = 0 adds no noise and is `last`: last_mean (default), last_tweedie
  or last_euler. Weak order 1. Draws from keys. Raises ValueError where w is not finite on the grid,
  as `sbdm` at pure noise.
  """
  return assemble(_sde_step, process, output,
                  diffusion=arrays.pytree(diffusion or Partial(coefficients.sigma)),
                  last=arrays.Static(last or last_mean))


def _sde_step(predict, z, memory, t, s, keys, *, process, output, diffusion, last):
  state, out, y = process(t), output(process, t), predict(z, t)
  to = lambda vector: remix(vector, state=state, out=out, z=z, y=y)
  u, score = to(processes.rate(process, t)), to(outputs.score(process, t))
  w = diffusion(process, t)
  flowed = combine((1, z), (s - t, u))
  mean = combine((1, flowed), ((t - s) * w, score))
  spread = root(2 * w * (t - s))
  noisy = combine((1, mean), (spread, arrays.noise_like(keys, z)))
  end = last.value(mean, to(outputs.x(process, t)), flowed)
  return jax.tree.map(lambda a, b: jnp.where(s > 0, a, b), noisy, end), memory


_sde_step.draws = _sde_step.moves_by_rate = True


def last_mean(drifted: Data, x: Data, flowed: Data) -> Data:
  """z_t + (s - t)(u - w score): the last step without its noise."""
  return drifted


def last_tweedie(drifted: Data, x: Data, flowed: Data) -> Data:
  """E[x | z_t]: the last step is Tweedie's formula."""
  return x


def last_euler(drifted: Data, x: Data, flowed: Data) -> Data:
  """z_t + (s - t) u: the last step is that of the probability-flow ODE."""
  return flowed
