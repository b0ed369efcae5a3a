"""Solvers without state: z_s from z_t and the predictions within the step."""

from __future__ import annotations

import math

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from jaxtyping import ArrayLike

from eqflow import arrays, blind_spots, outputs, processes
from eqflow.arrays import combine
from eqflow.mix import Mix, remix
from eqflow.outputs import Output
from eqflow.processes import Process
from eqflow.samplers.base import Solver, Traits, check_num_steps, check_velocity, no_state, plane
from eqflow.samplers.noise import kept_by_churn, kept_by_eta, one_number, renewed, root, step_ratio


def ddim(process: Process, output: Output, *, churn: ArrayLike = 0.0,
         eta: ArrayLike | None = None) -> Solver:
  """z_s = alpha_s x + sigma_s (r eps + sqrt(1 - r^2) fresh noise), x and eps as predicted at t.

  churn in [0, 1] is the fraction of each step that replaces noise: with
  a = (sigma_s/alpha_s)/(sigma_t/alpha_t), r = a^(churn/(1 - churn)); 0 is DDIM [2010.02502], 1/2
  DDPM's step, 1 replaces all noise at each step. eta in [0, 1], DDIM's and diffusers' own number, can
  be given instead: r^2 = 1 - eta^2 (1 - a^2), which is churn 0 at eta 0 and churn 1/2 at eta 1.

  First order, and exact where the output is constant. Only sigma/alpha matters, not the scale of
  (alpha, sigma); on the linear process DDIM is Euler's step. Stochastic unless the number given is 0.
  """
  if eta is not None:
    if not arrays.is_number(churn, 0):
      raise ValueError(f'churn={churn} and eta={eta} both set the noise of a step: give one of them')
    return _renewing(process, output, kept_by_eta, 'eta', eta)
  return _renewing(process, output, kept_by_churn, 'churn', churn)


def _renewing(process, output, kept, name, number):
  one_number(name, number, most=1)
  bound = plane(process, output)
  check = Partial(blind_spots.check_grid, **bound)
  if arrays.is_number(number, 0):
    return Solver(Partial(no_state), Partial(_ddim_step, **bound), check, Traits('ddim'))
  step = Partial(_noisy_ddim_step, **bound, kept=Partial(kept, number=number))
  return Solver(Partial(no_state), step, check, Traits('ddim', stochastic=True))


def _ddim_step(predict, z, state, t, s, keys, *, process, output):
  y = predict(z, t)
  return remix(process(s), state=process(t), out=output(process, t), z=z, y=y), state


def _noisy_ddim_step(predict, z, state, t, s, keys, *, process, output, kept):
  here, there = process(t), process(s)
  r = kept(step_ratio(here, there))
  to = Mix(there.x, there.eps * r)
  mean = remix(to, state=here, out=output(process, t), z=z, y=predict(z, t))
  return renewed(mean, there.eps, r, keys), state


def ancestral(process: Process, output: Output, *, variance: ArrayLike = 0.0) -> Solver:
  """z_s ~ p(z_s | z_t, x), x as predicted at t: DDPM's step [Ho+ 2006.11239].

  variance 0 is the posterior's: the step is then exact for a known x, however long, and equals DDIM
  over twice the log-SNR followed by forward noise. 1 is the forward step's, beta_t; in between, the
  logarithms are interpolated. No noise is added at s = 0. Stochastic.
  """
  one_number('variance', variance, most=1)
  bound = plane(process, output)
  return Solver(Partial(no_state), Partial(_ancestral_step, **bound, variance=variance),
                Partial(blind_spots.check_grid, **bound), Traits('ancestral', stochastic=True))


def _ancestral_step(predict, z, state, t, s, keys, *, process, output, variance):
  here, there = process(t), process(s)
  kept = step_ratio(here, there)
  to = Mix(there.x, there.eps * kept)
  mean = remix(to, state=here, out=output(process, t), z=z, y=predict(z, t))
  growth = here.eps / jnp.where(there.eps == 0, 1, there.eps)
  return renewed(mean, there.eps * growth**variance, kept, keys), state


def euler(process: Process, output: Output, *, along: Output | None = None) -> Solver:
  """z_s = z_t + (s - t) u: Euler's step of the probability-flow ODE dz/dt = u. First order.

  With `along`, a vector w of the plane that is kept constant over the step (x, eps, displacement; v
  rotates with the state), it is Euler's step in the time eta in which dz~ = w deta: z/sigma over
  alpha/sigma for x, z/alpha over sigma/alpha for eps, z/(alpha + sigma) over sigma/(alpha + sigma) for
  displacement, and a rotation for v. All of these are DDIM.
  """
  bound, traits = plane(process, output), Traits('euler')
  if along is None:
    return Solver(Partial(no_state), Partial(_euler_step, **bound),
                  Partial(check_velocity, **bound, traits=traits), traits)
  arrays.check_functions(along=along)
  bound |= dict(along=arrays.pytree(along))
  return Solver(Partial(no_state), Partial(_euler_along_step, **bound),
                Partial(_check_along, **bound, traits=traits, remedy='choose another `along`'), traits)


def _check_along(times, *, process, output, along, traits, remedy):
  blind_spots.check_grid(times, process=process, output=output, last=traits.stages > 1)
  blind_spots.needs_along(times, process=process, along=along, name=traits.name, remedy=remedy)


def _euler_step(predict, z, state, t, s, keys, *, process, output):
  return combine((1, z), (s - t, _velocity(predict, z, t, process, output))), state


def _euler_along_step(predict, z, state, t, s, keys, *, process, output, along):
  here, w = process(t), along(process, t)
  y = remix(w, state=here, out=output(process, t), z=z, y=predict(z, t))
  return remix(process(s), state=here, out=w, z=z, y=y), state


def heun(process: Process, output: Output, *, along: Output | None = None) -> Solver:
  """z_s = z_t + (s - t)(u_t + u_s)/2, u_s at Euler's z_s: the trapezoidal rule. Second order.

  Two evaluations a step; the step to s = 0, where no network is evaluated, is Euler's. On the `edm`
  process this is EDM's deterministic sampler [Karras+ 2206.00364, algorithm 1]. With `along`, the same
  rule in that vector's own time, as in `euler`: samples then depend on the vector.
  """
  bound, traits = plane(process, output), Traits('heun', stages=2)
  if along is not None:
    return _heun_along(process, output, along, traits, 'choose another `along`')
  return Solver(Partial(no_state), Partial(_heun_step, **bound),
                Partial(check_velocity, **bound, traits=traits), traits)


def _heun_along(process, output, along, traits, remedy):
  arrays.check_functions(along=along)
  bound = plane(process, output) | dict(along=arrays.pytree(along))
  return Solver(Partial(no_state), Partial(_heun_along_step, **bound),
                Partial(_check_along, **bound, traits=traits, remedy=remedy), traits)


def _heun_step(predict, z, state, t, s, keys, *, process, output):
  u_t = _velocity(predict, z, t, process, output)
  ahead = combine((1, z), (s - t, u_t))

  # Under vmap the correction is computed at data too, where its slope may be infinite.
  then = jnp.where(s > 0, s, t)

  def correct():
    u_s = _velocity(predict, ahead, then, process, output)
    return combine((1, z), ((s - t) / 2, u_t), ((s - t) / 2, u_s))

  return jax.lax.cond(s > 0, correct, lambda: ahead), state


def _heun_along_step(predict, z, state, t, s, keys, *, process, output, along):
  here, there, w = process(t), process(s), along(process, t)
  y_t = remix(w, state=here, out=output(process, t), z=z, y=predict(z, t))
  ahead = remix(there, state=here, out=w, z=z, y=y_t)
  then = jnp.where(s > 0, s, t)

  def correct():
    # The vector of the plane is the one at t; state and output are those at s.
    y_s = remix(w, state=process(then), out=output(process, then), z=ahead, y=predict(ahead, then))
    return remix(there, state=here, out=w, z=z, y=combine((0.5, y_t), (0.5, y_s)))

  return jax.lax.cond(s > 0, correct, lambda: ahead), state


def edm(process: Process, output: Output, *, num_steps: int, churn: ArrayLike = 0.0,
        sigma_min: ArrayLike = 0.0, sigma_max: ArrayLike = math.inf,
        noise_scale: ArrayLike = 1.0) -> Solver:
  """Noise added up to sigma (1 + gamma), then Heun's step along eps: EDM's stochastic sampler.

  gamma = min(churn/num_steps, sqrt(2) - 1) where sigma_min <= sigma <= sigma_max, else 0; the noise
  added is scaled by noise_scale [Karras+ 2206.00364, algorithm 2: S_churn, S_min, S_max, S_noise].
  sigma is the noise-to-signal ratio, on `edm` the time itself, and must be finite; num_steps is the
  grid's. Stochastic unless churn is 0.
  """
  check_num_steps(num_steps)
  one_number('churn', churn)
  if not arrays.is_traced(sigma_min, sigma_max) and not sigma_min <= sigma_max:
    raise ValueError(f'sigma_min={sigma_min} exceeds sigma_max={sigma_max}, so that no step would add '
                     'noise: give sigma_min <= sigma_max')
  if arrays.is_number(churn, 0):
    return _heun_along(process, output, outputs.eps, Traits('edm', stages=2), 'use heun')
  bound = plane(process, output)
  step = Partial(_edm_step, **bound, churn=churn, num_steps=float(num_steps), sigma_min=sigma_min,
                 sigma_max=sigma_max, noise_scale=noise_scale)
  return Solver(Partial(no_state), step, Partial(_edm_check, **bound, num_steps=num_steps),
                Traits('edm', stochastic=True, stages=2))


def _edm_check(times, *, process, output, num_steps):
  blind_spots.check_grid(times, process=process, output=output, last=True)
  blind_spots.needs_along(times, process=process, along=outputs.eps, name='edm', remedy='use heun')
  # The churn is divided among the steps.
  blind_spots.needs_num_steps(times, num_steps=num_steps, name='edm', exact=True)


def _edm_step(predict, z, state, t, s, keys, *, process, output, churn, num_steps, sigma_min,
              sigma_max, noise_scale):
  sigma = processes.noise_to_signal(process, t)
  inside = (sigma >= sigma_min) & (sigma <= sigma_max) & jnp.isfinite(sigma)
  gamma = jnp.where(inside, jnp.minimum(churn / num_steps, math.sqrt(2) - 1), 0)
  # Searched up to 1, where every process but `edm` ends, or to 4 t, where `edm` has 4 times the noise.
  # Beyond its end a process has NaN for a log-SNR, which bisects down.
  noisier = processes.time_of_logsnr(process, -2 * jnp.log(sigma * (1 + gamma)), low=t,
                                     high=jnp.maximum(4 * t, 1))
  up = jnp.where(gamma > 0, noisier, t)
  here, there = process(t), process(up)
  scale = jnp.where(gamma > 0, there.x / jnp.where(gamma > 0, here.x, 1), 1)
  # A difference of squares as a product: exactly 0 where nothing is added.
  old = scale * here.eps
  added = root((there.eps - old) * (there.eps + old))
  z = combine((scale, z), (noise_scale * added, arrays.noise_like(keys, z)))
  return _heun_along_step(predict, z, state, up, s, keys, process=process, output=output,
                          along=outputs.eps)


def _velocity(predict, z, t, process, output):
  out = output(process, t)
  return remix(processes.rate(process, t), state=process(t), out=out, z=z, y=predict(z, t))
