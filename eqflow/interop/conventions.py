"""Conventions of other projects: their time, state and output, converted to ours and back.

| project | their time at data, noise | their state | their output |
|---|---|---|---|
| `sit` | 1, 0 | z | -u, eps, score |
| `eqm` | 1, 0 | z | (x - eps) c: minus `equilibrium` |
| `flow_matching`, `mit` | 1, 0 | z | -u, x, eps; -u, score |
| `edm` | sigma: 0, infinity | x + sigma eps | D = x |
| `edm_network` | ln(sigma)/4: -infinity, infinity | z/sqrt(sigma^2 + sd^2) | F = `edm` |
| `diffusers` | k: -1, T - 1 | z | eps, v, x |
| `diffusers_flow` | T sigma: 0, T | z | eps - x |
| `vdm` | gamma: gamma_min, gamma_max | z | eps, v, x |

With a convention, a network of theirs, as a JAX function, is a predictor for any of our solvers:

    theirs = conventions.sit(processes.linear, conventions.velocity)
    solver = samplers.ddim(theirs.process, theirs.output)
    samplers.sample(solver, conventions.as_predict(theirs, model), z, times)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float

from eqflow import arrays, outputs, processes
from eqflow.arrays import Coef, Data, Number
from eqflow.fields import Predict
from eqflow.mix import Mix, remix
from eqflow.outputs import Output
from eqflow.processes import Process, tables

Model = Callable[[Data, Float[Array, 'b']], Data]


def same(t: ArrayLike) -> ArrayLike:
  """t: their time is ours."""
  return t


def reversed_time(t: ArrayLike) -> ArrayLike:
  """1 - t, for time that runs from noise to data; its own inverse."""
  return 1 - t


def unscaled(t: Coef) -> Coef:
  """1: their state is ours."""
  return jnp.ones_like(t)


class Convention(NamedTuple):
  """Their network takes (scale(t) z, their_time(t)) and returns the vector `output`.

  z is the state of `process` at our t. `output` includes their sign; `time` is the inverse of
  `their_time`.
  """
  process: Process
  output: Output
  time: Callable[[ArrayLike], ArrayLike]
  their_time: Callable[[ArrayLike], ArrayLike]
  scale: Callable[[Coef], Coef] = unscaled


def to_ours(convention: Convention, t: ArrayLike, z: Data, y: Data, *,
            output: Output) -> tuple[ArrayLike, Data, Data]:
  """Their (t, z, y) -> our (t, z/c, the vector `output`), with c = scale(t)."""
  t = convention.time(t)
  z = arrays.combine((1 / convention.scale(t), z))
  return t, z, _remixed(convention.process, t, z, y, out=convention.output, to=output)


def _remixed(process, t, z, y, *, out, to):
  return remix(to(process, t), state=process(t), out=out(process, t), z=z, y=y)


def as_predict(convention: Convention, model: Model) -> Predict:
  """(z, t) -> model(scale(t) z, their_time(t)): their network as a predictor of convention.output."""
  return arrays.pytree(Partial(_as_predict, convention=convention, model=model))


def _as_predict(z, t, *, convention, model):
  return model(arrays.combine((convention.scale(t), z)), convention.their_time(t))


def as_model(convention: Convention, predict: Predict, *, output: Output) -> Model:
  """Their (z, t) -> their output: our predictor of `output` as a network for their samplers."""
  return arrays.pytree(Partial(_as_model, convention=convention, predict=predict, output=output))


def _as_model(z, t, *, convention, predict, output):
  t = convention.time(t)
  z = arrays.combine((1 / convention.scale(t), z))
  return _remixed(convention.process, t, z, predict(z, t), out=output, to=convention.output)


def velocity(process: Process, t: Coef) -> Mix:
  """-u = dz/d(1 - t): the velocity for time that runs from noise to data."""
  rate = outputs.u(process, t)
  return Mix(-rate.x, -rate.eps)


def ascent(process: Process, t: Coef, *, decay: Callable) -> Mix:
  """(x - eps) c(gamma), minus `outputs.equilibrium`: the target in the code of EqM."""
  field = outputs.equilibrium(process, t, decay=decay)
  return Mix(-field.x, -field.eps)


def polynomial(t: Coef, *, power: ArrayLike) -> Mix:
  """((1 - t)^n, 1 - (1 - t)^n): flow_matching's PolynomialConvexScheduler, linear at n = 1."""
  # NaN outside [0, 1], where an even power would give a valid Mix.
  alpha = jnp.where((t >= 0) & (t <= 1), 1 - t, jnp.nan) ** power
  return Mix(alpha, 1 - alpha)


def linear_alpha(t: Coef) -> Mix:
  """(1 - t, sqrt(1 - (1 - t)^2)): flow_matching's LinearVPScheduler; infinite rate at t = 0."""
  return Mix(1 - t, jnp.sqrt(t * (2 - t)))


def linear_logsnr(t: Coef, *, gamma_min: ArrayLike, gamma_max: ArrayLike) -> Mix:
  """alpha^2 = sigmoid(-gamma), sigma^2 = sigmoid(gamma), gamma = -logsnr linear in t.

  At t = 0 some noise is left (gamma_min), at t = 1 some data (gamma_max).
  """
  inside = (t >= 0) & (t <= 1)
  gamma = jnp.where(inside, _gamma(t, gamma_min=gamma_min, gamma_max=gamma_max), jnp.nan)
  return Mix(jnp.sqrt(jax.nn.sigmoid(-gamma)), jnp.sqrt(jax.nn.sigmoid(gamma)))


def scheduled(alpha: Callable, sigma: Callable) -> Process:
  """t -> (alpha(1 - t), sigma(1 - t)): a schedule that runs from noise to data, as a process."""
  return Partial(_scheduled, alpha=arrays.pytree(alpha), sigma=arrays.pytree(sigma))


def _scheduled(t, *, alpha, sigma):
  return Mix(alpha(1 - t), sigma(1 - t))


def sit(process: Process, output: Output) -> Convention:
  """SiT, x_t = alpha x_1 + sigma x_0 with x_1 the data: its velocity, noise or score model.

  Its paths Linear, GVP and VP are `linear`, `cosine` and `variance_preserving` (0.1, 20); its models
  `velocity`, `outputs.eps` and `outputs.score`.
  """
  _check('sit', output, velocity, outputs.eps, outputs.score)
  return Convention(process, output, reversed_time, reversed_time)


def eqm(*, decay: Callable = Partial(outputs.truncated_decay, start=0.8, gain=4.0)) -> Convention:
  """EqM's reference code: x_t = t x_1 + (1 - t) x_0, target (x_1 - x_0) c(t), c = 4 min(1, 5 - 5t).

  The paper has the opposite sign, `outputs.equilibrium`: where we subtract a step times the field,
  their code adds it.
  """
  output = Partial(ascent, decay=arrays.pytree(decay))
  return Convention(processes.linear, output, reversed_time, reversed_time)


def flow_matching(process: Process, output: Output) -> Convention:
  """facebookresearch/flow_matching, X_t = alpha X_1 + sigma X_0: velocity, target x_1 or epsilon.

  Its schedulers CondOT, PolynomialConvex, VP, LinearVP and Cosine are `linear`, `polynomial`,
  `variance_preserving` (0.1, 20), `linear_alpha` and `cosine`; its models `velocity`, `outputs.x` and
  `outputs.eps`.
  """
  _check('flow_matching', output, velocity, outputs.x, outputs.eps)
  return Convention(process, output, reversed_time, reversed_time)


def mit(process: Process, output: Output) -> Convention:
  """MIT 6.S184, x_t = alpha_t z + beta_t eps with z the data: its vector field or its score.

  CondOT is `linear`, any other alpha and beta `scheduled(alpha, beta)`; its models are `velocity` and
  `outputs.score`.
  """
  _check('mit', output, velocity, outputs.score)
  return Convention(process, output, reversed_time, reversed_time)


def edm() -> Convention:
  """EDM's denoiser D(x + sigma n; sigma) = x [Karras+ 2206.00364]: their sigma is our t."""
  return Convention(processes.edm, outputs.x, same, same)


def edm_network(*, sigma_data: Number = 0.5) -> Convention:
  """EDM's network F(c_in z; c_noise) inside D = c_skip z + c_out F [Karras+ 2206.00364, table 1].

  c_in = 1/sqrt(sigma^2 + sd^2), c_noise = ln(sigma)/4.
  """
  bound = dict(sigma_data=float(sigma_data))
  return Convention(processes.edm, Partial(outputs.edm, **bound), _sigma, _c_noise,
                    Partial(_c_in, **bound))


def _c_noise(t):
  return jnp.log(t) / 4


def _sigma(c_noise):
  return jnp.exp(4 * c_noise)


def _c_in(t, *, sigma_data):
  return 1 / jnp.sqrt(jnp.square(t) + sigma_data**2)


def diffusers(alphas_cumprod: tables.Table, output: Output) -> Convention:
  """The table schedulers of diffusers, and DDPM and DiT: timestep k is entry k, t = (k + 1)/T.

  prediction_type epsilon, v_prediction and sample are `outputs.eps`, `v` and `x`. `their_time` does not
  round k: round it for a model that reads its timestep from a table.
  """
  _check('diffusers', output, outputs.eps, outputs.v, outputs.x)
  process = processes.table(alphas_cumprod)
  num = float(len(alphas_cumprod))
  return Convention(process, output, Partial(_time_of_entry, num=num), Partial(_entry, num=num))


def _entry(t, *, num):
  return num * t - 1


def _time_of_entry(k, *, num):
  return (k + 1) / num


def diffusers_flow(*, shift: Number = 1.0, num: Number = 1000) -> Convention:
  """FlowMatchEulerDiscreteScheduler of diffusers: (1 - sigma) x + sigma eps, output eps - x.

  The network takes T sigma, sigma = shift t/(1 + (shift - 1) t): its pipelines shift a uniform grid of
  sigmas, which is a uniform grid of our t from 1 to 0.
  """
  process = Partial(processes.shifted, process=processes.linear, shift=float(shift))
  bound = dict(shift=float(shift), num=float(num))
  return Convention(process, outputs.displacement, Partial(_time_of_timestep, **bound),
                    Partial(_timestep, **bound))


def _timestep(t, *, shift, num):
  return num * shift * t / (shift * t + (1 - t))


def _time_of_timestep(timestep, *, shift, num):
  sigma = timestep / num
  return sigma / (sigma + shift * (1 - sigma))


def vdm(output: Output, *, gamma_min: Number = -13.3, gamma_max: Number = 5.0) -> Convention:
  """Variational diffusion models [Kingma+ 2107.00630]: the network takes gamma = -logsnr.

  alpha^2 = sigmoid(-gamma). Our t is linear in gamma, as in their fixed schedule. A learned schedule
  has the same gamma at another t, so this convention fits its network too. Models: `outputs.eps`, `v`
  and `x`.
  """
  _check('vdm', output, outputs.eps, outputs.v, outputs.x)
  bound = dict(gamma_min=float(gamma_min), gamma_max=float(gamma_max))
  return Convention(Partial(linear_logsnr, **bound), output, Partial(_time_of_gamma, **bound),
                    Partial(_gamma, **bound))


def _gamma(t, *, gamma_min, gamma_max):
  return gamma_min + (gamma_max - gamma_min) * t


def _time_of_gamma(gamma, *, gamma_min, gamma_max):
  return (gamma - gamma_min) / (gamma_max - gamma_min)


def _check(project, output, *known):
  # `outputs.u` has the opposite sign: without this check, sampling would go wrong silently.
  if output not in known:
    names = [arrays.name_of(one) for one in known]
    raise ValueError(f'output={arrays.name_of(output)!r} is not a model of {project}: choose from '
                     f'{names}, where velocity is conventions.velocity = -u')
