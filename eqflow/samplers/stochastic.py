"""The sampling SDE for any diffusion coefficient, by Euler-Maruyama."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax import numpy as jnp
from jax.tree_util import Partial

from eqflow import arrays, blind_spots, outputs, processes
from eqflow.arrays import Data, combine
from eqflow.mix import remix
from eqflow.outputs import Output
from eqflow.processes import Process
from eqflow.samplers import diffusions
from eqflow.samplers.base import Solver, Traits, check_velocity, no_state, plane
from eqflow.samplers.noise import root


def sde(process: Process, output: Output, *, diffusion: Callable | None = None,
        last: Callable | None = None) -> Solver:
  """z_s = z_t + (s - t)(u - w score) + sqrt(2 w (t - s)) noise: Euler-Maruyama, w = diffusion.

  diffusion (process, t) -> w is a function of `samplers.diffusions`, by default sigma; all have the
  same marginals [Ma+ 2401.08740]. The step to s = 0 adds no noise and is `last`: last_mean (default),
  last_tweedie or last_euler. Weak order 1. Stochastic. Its check raises where w is not finite on the
  grid, as `sbdm` at pure noise.
  """
  bound, traits = plane(process, output), Traits('sde', stochastic=True)
  arrays.check_functions(diffusion=diffusion or diffusions.sigma, last=last or last_mean)
  bound |= dict(diffusion=arrays.pytree(diffusion or diffusions.sigma))
  return Solver(Partial(no_state), Partial(_sde_step, **bound, last=arrays.Static(last or last_mean)),
                Partial(_sde_check, **bound, traits=traits), traits)


def _sde_check(times, *, process, output, diffusion, traits):
  check_velocity(times, process=process, output=output, traits=traits)
  blind_spots.needs_diffusion(times, process=process, diffusion=diffusion)


def _sde_step(predict, z, state, t, s, keys, *, process, output, diffusion, last):
  here, out, y = process(t), output(process, t), predict(z, t)
  to = lambda vector: remix(vector, state=here, out=out, z=z, y=y)
  u, score = to(processes.rate(process, t)), to(outputs.score(process, t))
  w = diffusion(process, t)
  flowed = combine((1, z), (s - t, u))
  mean = combine((1, flowed), ((t - s) * w, score))
  spread = root(2 * w * (t - s))
  noisy = combine((1, mean), (spread, arrays.noise_like(keys, z)))
  end = last.value(mean, to(outputs.x(process, t)), flowed)
  return jax.tree.map(lambda a, b: jnp.where(s > 0, a, b), noisy, end), state


def last_mean(drifted: Data, x: Data, flowed: Data) -> Data:
  """z_t + (s - t)(u - w score): the last step without its noise."""
  return drifted


def last_tweedie(drifted: Data, x: Data, flowed: Data) -> Data:
  """E[x | z_t]: the last step is Tweedie's formula."""
  return x


def last_euler(drifted: Data, x: Data, flowed: Data) -> Data:
  """z_t + (s - t) u: the last step follows the probability-flow ODE."""
  return flowed
