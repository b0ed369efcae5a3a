"""Solvers of the sampling ODE and SDE, for any process and any output of the network.

Each is a factory of a Solver: `sample(ddim(process, output), predict, z, times)`.
"""

import jax
from jax import numpy as jnp
from jax.tree_util import Partial

from eqflow import arrays, processes
from eqflow.arrays import combine
from eqflow.mix import Mix, remix
from eqflow.outputs import Output
from eqflow.processes import Process
from eqflow.solver import Solver, no_memory, sample, sample_path

__all__ = ['Solver', 'ancestral', 'ddim', 'euler', 'heun', 'sample', 'sample_path']


def ddim(process: Process, output: Output) -> Solver:
  """z_s = alpha_s x + sigma_s eps, with x and eps as the network sees them at t [2010.02502].

  First order and exact where the output is constant. The scale of (alpha, sigma) does not matter;
  on the linear process this is Euler's step.
  """
  return _solver(_ddim_step, process, output)


def _ddim_step(predict, z, memory, t, s, keys, *, process, output):
  y = predict(z, t)
  return remix(process(s), state=process(t), out=output(process, t), z=z, y=y), memory


def euler(process: Process, output: Output) -> Solver:
  """z_s = z_t + (s - t) u: Euler's step of the probability-flow ODE dz/dt = u. First order."""
  return _solver(_euler_step, process, output)


def _euler_step(predict, z, memory, t, s, keys, *, process, output):
  return combine((1, z), (s - t, _velocity(predict, z, t, process, output))), memory


def heun(process: Process, output: Output) -> Solver:
  """z_s = z_t + (s - t)(u_t + u_s)/2, u_s at Euler's z_s: the trapezoidal rule. Second order.

  Two evaluations a step; the step to s = 0, where no network is evaluated, is Euler's. On the `edm`
  process this is EDM's deterministic sampler [Karras+ 2206.00364, algorithm 1].
  """
  return _solver(_heun_step, process, output)


def _heun_step(predict, z, memory, t, s, keys, *, process, output):
  u_t = _velocity(predict, z, t, process, output)
  ahead = combine((1, z), (s - t, u_t))

  def correct():
    u_s = _velocity(predict, ahead, s, process, output)
    return combine((1, z), ((s - t) / 2, u_t), ((s - t) / 2, u_s))

  return jax.lax.cond(s > 0, correct, lambda: ahead), memory


# It evaluates the network at s too, so a grid's last time is checked unless it is 0.
_heun_step.looks_ahead = True


def _velocity(predict, z, t, process, output):
  out = output(process, t)
  return remix(processes.rate(process, t), state=process(t), out=out, z=z, y=predict(z, t))


def ancestral(process: Process, output: Output) -> Solver:
  """z_s ~ p(z_s | z_t, x), x as the network sees it: DDPM's step with the posterior variance.

  Exact at finite steps for a known x; equals DDIM over twice the log-SNR, then noise forward. Draws
  from keys, which must be given.
  """
  return _solver(_ancestral_step, process, output)


def _ancestral_step(predict, z, memory, t, s, keys, *, process, output):
  if keys is None:
    raise ValueError('ancestral draws noise: give sample(..., keys=...) one key per example')
  y = predict(z, t)
  here, there = process(t), process(s)
  # The share of z's own noise that survives; the rest of sigma_s is drawn anew. 0/0 where a time
  # repeats at either end: all of it survives.
  area = there.x * here.eps
  kept = jnp.where(area == 0, 1, there.eps * here.x / jnp.where(area == 0, 1, area))
  to = Mix(there.x, there.eps * kept)
  mean = remix(to, state=here, out=output(process, t), z=z, y=y)
  # Where s = t, rounding can leave kept above 1.
  spread = there.eps * jnp.sqrt(jnp.maximum(0, (1 - kept) * (1 + kept)))
  return combine((1, mean), (spread, arrays.noise_like(keys, z))), memory


def _solver(step, process, output):
  return Solver(Partial(no_memory), Partial(step, process=arrays.pytree(process),
                                            output=arrays.pytree(output)))
