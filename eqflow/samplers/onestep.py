"""Solvers that remember nothing: z_s from z_t and the predictions within the step."""

import math

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from jaxtyping import ArrayLike

from eqflow import arrays, outputs, processes
from eqflow.arrays import combine
from eqflow.mix import Mix, remix
from eqflow.outputs import Output
from eqflow.processes import Process
from eqflow.samplers.base import Solver, assemble, check, contributions, sample, sample_path
from eqflow.samplers.multistep import adams_bashforth, dpmpp_2m, dpmpp_3m, unipc
from eqflow.samplers.noise import kept_by_churn, kept_by_eta, one_number, renewed, root, step_ratio
from eqflow.samplers.runge_kutta import adaptive
from eqflow.samplers.stochastic import last_euler, last_mean, last_tweedie, sde

__all__ = [
    'Solver', 'adams_bashforth', 'adaptive', 'ancestral', 'check', 'contributions', 'ddim',
    'dpmpp_2m', 'dpmpp_3m', 'edm', 'euler', 'heun', 'last_euler', 'last_mean', 'last_tweedie',
    'sample', 'sample_path', 'sde', 'unipc']


def ddim(process: Process, output: Output, *, churn: ArrayLike = 0.0,
         eta: ArrayLike | None = None) -> Solver:
  """z_s = alpha_s x + sigma_s (r eps + sqrt(1 - r^2) fresh noise), x and eps as seen at t.

  churn in [0, 1] is the share of each step's way that is noise put back: with
  a = (sigma_s/alpha_s)/(sigma_t/alpha_t), r = a^(churn/(1 - churn)); 0 is DDIM [2010.02502], 1/2
  DDPM's step, 1 forgets all noise at each step. eta in [0, 1], diffusers' and DDIM's own number
  instead: r^2 = 1 - eta^2 (1 - a^2), equal at 0 and at 1, which is churn 1/2.

  First order and exact where the output is constant. The scale of (alpha, sigma) does not matter;
  on the linear process DDIM is Euler's step. Draws noise unless the number given is 0.
  """
  if eta is not None:
    if not _is(churn, 0):
      raise ValueError(f'churn={churn} and eta={eta} are two ways to say one thing: give one')
    return _renewing(process, output, kept_by_eta, 'eta', eta)
  return _renewing(process, output, kept_by_churn, 'churn', churn)


def _renewing(process, output, kept, name, number):
  one_number(name, number)
  if not arrays.is_traced(number) and not 0 <= number <= 1:
    raise ValueError(f'{name}={number}: give a number from 0 (no noise) to 1')
  if _is(number, 0):
    return assemble(_ddim_step, process, output)
  return assemble(_noisy_ddim_step, process, output, kept=Partial(kept, number=number))


def _is(number, value):
  return not arrays.is_traced(number) and jnp.ndim(number) == 0 and float(number) == value


def _ddim_step(predict, z, memory, t, s, keys, *, process, output):
  y = predict(z, t)
  return remix(process(s), state=process(t), out=output(process, t), z=z, y=y), memory


def _noisy_ddim_step(predict, z, memory, t, s, keys, *, process, output, kept):
  here, there = process(t), process(s)
  r = kept(step_ratio(here, there))
  to = Mix(there.x, there.eps * r)
  mean = remix(to, state=here, out=output(process, t), z=z, y=predict(z, t))
  return renewed(mean, there.eps, r, keys), memory


_noisy_ddim_step.draws = True


def ancestral(process: Process, output: Output, *, variance: ArrayLike = 0.0) -> Solver:
  """z_s ~ p(z_s | z_t, x), x as the network sees it: DDPM's step [Ho+ 2006.11239].

  variance 0 is the posterior's, at which the step is exact at finite steps for a known x and equals
  DDIM over twice the log-SNR, then noise forward; 1 is the forward step's, beta_t; between, their
  logarithms are interpolated. None is added at s = 0. Draws from keys, which must be given.
  """
  one_number('variance', variance)
  if not arrays.is_traced(variance) and not 0 <= variance <= 1:
    raise ValueError(f'variance={variance}: give a number from 0 (the posterior\'s) to 1 (beta_t)')
  return assemble(_ancestral_step, process, output, variance=variance)


def _ancestral_step(predict, z, memory, t, s, keys, *, process, output, variance):
  here, there = process(t), process(s)
  kept = step_ratio(here, there)
  to = Mix(there.x, there.eps * kept)
  mean = remix(to, state=here, out=output(process, t), z=z, y=predict(z, t))
  share = here.eps / jnp.where(there.eps == 0, 1, there.eps)
  return renewed(mean, there.eps * share**variance, kept, keys), memory


_ancestral_step.draws = True


def euler(process: Process, output: Output, *, along: Output | None = None) -> Solver:
  """z_s = z_t + (s - t) u: Euler's step of the probability-flow ODE dz/dt = u. First order.

  With `along`, a vector w of the plane held still over the step (x, eps, displacement; v turns with
  the state), it is Euler's step in the time in which dz~ = w deta: z/sigma over alpha/sigma for x,
  z/alpha over sigma/alpha for eps, z/(alpha + sigma) over sigma/(alpha + sigma) for displacement,
  and a rotation for v. All of these are DDIM.
  """
  if along is None:
    return assemble(_euler_step, process, output)
  return assemble(_euler_along_step, process, output, along=arrays.pytree(along))


def _euler_step(predict, z, memory, t, s, keys, *, process, output):
  return combine((1, z), (s - t, _velocity(predict, z, t, process, output))), memory


def _euler_along_step(predict, z, memory, t, s, keys, *, process, output, along):
  here, w = process(t), along(process, t)
  y = remix(w, state=here, out=output(process, t), z=z, y=predict(z, t))
  return remix(process(s), state=here, out=w, z=z, y=y), memory


def heun(process: Process, output: Output, *, along: Output | None = None) -> Solver:
  """z_s = z_t + (s - t)(u_t + u_s)/2, u_s at Euler's z_s: the trapezoidal rule. Second order.

  Two evaluations a step; the step to s = 0, where no network is evaluated, is Euler's. On the `edm`
  process this is EDM's deterministic sampler [Karras+ 2206.00364, algorithm 1]. With `along`, the
  rule in that vector's own time, as in `euler`: samples then differ by the vector chosen.
  """
  if along is None:
    return assemble(_heun_step, process, output)
  return assemble(_heun_along_step, process, output, along=arrays.pytree(along))


def _heun_step(predict, z, memory, t, s, keys, *, process, output):
  u_t = _velocity(predict, z, t, process, output)
  ahead = combine((1, z), (s - t, u_t))

  def correct():
    u_s = _velocity(predict, ahead, s, process, output)
    return combine((1, z), ((s - t) / 2, u_t), ((s - t) / 2, u_s))

  return jax.lax.cond(s > 0, correct, lambda: ahead), memory


def _heun_along_step(predict, z, memory, t, s, keys, *, process, output, along):
  here, there, w = process(t), process(s), along(process, t)
  y_t = remix(w, state=here, out=output(process, t), z=z, y=predict(z, t))
  ahead = remix(there, state=here, out=w, z=z, y=y_t)

  def correct():
    # The same vector of the plane as at t, as seen from s.
    y_s = remix(w, state=there, out=output(process, s), z=ahead, y=predict(ahead, s))
    return remix(there, state=here, out=w, z=z, y=combine((0.5, y_t), (0.5, y_s)))

  return jax.lax.cond(s > 0, correct, lambda: ahead), memory


# They evaluate the network at s too, so a grid's last time is checked unless it is 0.
_heun_step.looks_ahead = _heun_along_step.looks_ahead = True
# Which a process may not have at data: variance_preserving's is infinite there.
_euler_step.moves_by_rate = _heun_step.moves_by_rate = True


def edm(process: Process, output: Output, *, num_steps: int, churn: ArrayLike = 0.0,
        sigma_min: ArrayLike = 0.0, sigma_max: ArrayLike = math.inf,
        noise_scale: ArrayLike = 1.0) -> Solver:
  """Noise added until sigma (1 + gamma), then Heun's step along eps: EDM's stochastic sampler.

  gamma = min(churn/num_steps, sqrt(2) - 1) where sigma_min <= sigma <= sigma_max, else 0; what is
  added is scaled by noise_scale [Karras+ 2206.00364, algorithm 2: S_churn, S_min, S_max, S_noise].
  sigma is the noise-to-signal ratio, on `edm` the time itself, and must be finite; num_steps is the
  grid's. Draws from keys unless churn is 0.
  """
  if num_steps < 1:
    raise ValueError(f'num_steps={num_steps}: give the number of steps of the grid')
  one_number('churn', churn)
  if not arrays.is_traced(churn) and not churn >= 0:
    raise ValueError(f'churn={churn}: S_churn is 0 (no noise) or more')
  if not arrays.is_traced(sigma_min, sigma_max) and not sigma_min <= sigma_max:
    raise ValueError(f'sigma_min={sigma_min}, sigma_max={sigma_max}: no sigma is between them, so none '
                     'would be given noise; give sigma_min <= sigma_max')
  if _is(churn, 0):
    return heun(process, output, along=outputs.eps)
  return assemble(_edm_step, process, output, churn=churn, num_steps=float(num_steps),
                  sigma_min=sigma_min, sigma_max=sigma_max, noise_scale=noise_scale,
                  along=outputs.eps)


def _edm_step(predict, z, memory, t, s, keys, *, process, output, churn, num_steps, sigma_min,
              sigma_max, noise_scale, along):
  sigma = processes.noise_to_signal(process, t)
  inside = (sigma >= sigma_min) & (sigma <= sigma_max) & jnp.isfinite(sigma)
  gamma = jnp.where(inside, jnp.minimum(churn / num_steps, math.sqrt(2) - 1), 0)
  # Looked for up to 1, where every process but `edm` ends, or to 4 t, where that one is noisier by 4.
  # Beyond its end a process has no log-SNR, which bisects down.
  noisier = processes.time_of_logsnr(process, -2 * jnp.log(sigma * (1 + gamma)), low=t,
                                     high=jnp.maximum(4 * t, 1))
  up = jnp.where(gamma > 0, noisier, t)
  here, there = process(t), process(up)
  share = jnp.where(gamma > 0, there.x / jnp.where(gamma > 0, here.x, 1), 1)
  # A difference of squares as a product: exactly 0 where nothing is added.
  old = share * here.eps
  added = root((there.eps - old) * (there.eps + old))
  z = combine((share, z), (noise_scale * added, arrays.noise_like(keys, z)))
  return _heun_along_step(predict, z, memory, up, s, keys, process=process, output=output,
                          along=along)


_edm_step.draws = _edm_step.looks_ahead = _edm_step.goes_along = _edm_step.shares_churn = True


def _velocity(predict, z, t, process, output):
  out = output(process, t)
  return remix(processes.rate(process, t), state=process(t), out=out, z=z, y=predict(z, t))
