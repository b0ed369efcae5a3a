"""The one file with tables of names: what a config may call a function by."""

import functools

import jax
from jax import numpy as jnp
import optax

from eqflow import (
    couplings, densities, descent, energies, fields, grids, outputs, processes, samplers, weights)
from eqflow.models import dit, edm2, mlp
from eqflow.processes import tables
from eqflow.samplers import diffusions
from eqflow.training import optimizers

PROCESSES = {
    'linear': processes.linear,
    'cosine': processes.cosine,
    'variance_preserving': processes.variance_preserving,
    'edm': processes.edm,
    'sub_vp': processes.sub_vp,
    'discrete': processes.discrete,
    'shifted': processes.shifted,
    'logsnr_shifted': processes.logsnr_shifted,
}
OUTPUTS = {
    'x': outputs.x,
    'eps': outputs.eps,
    'v': outputs.v,
    'u': outputs.u,
    'displacement': outputs.displacement,
    'score': outputs.score,
    'edm': outputs.edm,
    'equilibrium': outputs.equilibrium,
}
DECAYS = {
    'constant': outputs.constant_decay,
    'linear': outputs.linear_decay,
    'truncated': outputs.truncated_decay,
    'piecewise': outputs.piecewise_decay,
}
DENSITIES = {
    'uniform': lambda: densities.uniform,
    'uniform_on': densities.uniform_on,
    'logit_normal': densities.logit_normal,
    'lognormal': densities.lognormal,
    'mode': densities.mode,
    'cosmap': lambda: densities.cosmap,
    'adaptive': densities.adaptive,
}
WEIGHTS = {
    'ones': weights.ones,
    'edm': weights.edm,
    'on_logsnr': weights.on_logsnr,
}
COUPLINGS = {
    'independent': couplings.independent,
    'optimal_transport': couplings.optimal_transport,
    'sinkhorn': couplings.sinkhorn,
    'pairs': couplings.given,
}
SPECTRA = {
    'elbo': weights.elbo,
    'sigmoid': weights.sigmoid,
    'flow_matching': weights.flow_matching,
    'indi': weights.indi,
    'edm': weights.edm_logsnr,
    'sd3': weights.sd3,
    'p2': weights.p2,
    'min_snr': weights.min_snr,
    'monotone': weights.monotone,
}
SCALES = {
    'unit': fields.unit,
    'unit_variance': fields.unit_variance,
}
LABELS = {
    'time': fields.time,
    'logsnr': fields.logsnr,
    'quarter_log_sigma': fields.quarter_log_sigma,
    'table_index': fields.table_index,
    'none': fields.none,
}
# What a network is made a gradient by; None for a network that is the field itself.
ENERGIES = {
    'none': lambda: None,
    'dot': lambda: energies.dot,
    'squared_norm': lambda: energies.squared_norm,
    'negative_squared_norm': lambda: energies.negative_squared_norm,
}
SOLVERS = {
    'ddim': samplers.ddim,
    'euler': samplers.euler,
    'heun': samplers.heun,
    'ancestral': samplers.ancestral,
    'edm': samplers.edm,
    'sde': samplers.sde,
    'adams_bashforth': samplers.adams_bashforth,
    'dpmpp_2m': samplers.dpmpp_2m,
    'dpmpp_3m': samplers.dpmpp_3m,
    'unipc': samplers.unipc,
    'adaptive': samplers.adaptive,
}
DIFFUSIONS = {
    'constant': diffusions.constant,
    'sigma': diffusions.sigma,
    'linear': diffusions.linear,
    'decreasing': diffusions.decreasing,
    'increasing_decreasing': diffusions.increasing_decreasing,
    'sbdm': diffusions.sbdm,
}
LAST_STEPS = {
    'mean': samplers.last_mean,
    'tweedie': samplers.last_tweedie,
    'euler': samplers.last_euler,
}


def _angles(table, rescale=lambda table: table):
  """What `discrete` binds of a table, asked for with the table's own numbers."""
  @functools.wraps(table)
  def angles(*args, **numbers):
    return processes.table(rescale(table(*args, **numbers))).keywords
  return angles


ANGLES = {
    'linear': _angles(tables.linear),
    'scaled_linear': _angles(tables.scaled_linear),
    'cosine': _angles(tables.cosine),
    'linear_zero_snr': _angles(tables.linear, tables.zero_terminal_snr),
    'scaled_linear_zero_snr': _angles(tables.scaled_linear, tables.zero_terminal_snr),
    'cosine_zero_snr': _angles(tables.cosine, tables.zero_terminal_snr),
}
# Where guidance acts.
INTERVALS = {
    'always': lambda: {},
    'time': lambda low, high: dict(measure=fields.time, low=low, high=high),
    'logsnr': lambda low, high: dict(measure=fields.logsnr, low=low, high=high),
    'noise_to_signal': lambda low, high: dict(measure=processes.noise_to_signal, low=low, high=high),
}


def _adam(step_size, b1=0.9, b2=0.999):
  return descent.from_optax(optax.adam(step_size, b1, b2))


def _momentum(step_size, momentum):
  return descent.from_optax(optax.sgd(step_size, momentum))


DESCENTS = {
    'gradient_descent': descent.gradient_descent,
    'nesterov': descent.nesterov,
    'heun_descent': descent.heun,
    'langevin': descent.langevin,
    'adam': _adam,
    'momentum': _momentum,
}
# What is small at data, and so is descended: the others are not, and the score points the other way.
DESCENDED = 'equilibrium', 'u', 'displacement'
# What a step size is multiplied with.
FACTORS = {
    'constant': descent.constant,
    'cosine': descent.cosine,
    'harmonic': descent.harmonic,
}
GRIDS = {
    'uniform': grids.uniform,
    'karras': grids.karras,
    'logsnr': grids.logsnr,
    'leading': grids.leading,
    'linspace': grids.linspace,
    'trailing': grids.trailing,
}
MODELS = {
    'mlp': mlp.MLP,
    'dit': dit.DiT,
    **{f'DiT-{size}/{patch}': functools.partial(dit.DiT, patch=patch, **numbers)
       for size, numbers in dit.SIZES.items() for patch in (2, 4, 8)},
    'edm2': edm2.EDM2,
    **{f'EDM2-{name}': functools.partial(edm2.EDM2, width=row['width'], dropout=row['dropout'])
       for name, row in edm2.PRESETS.items()},
}
SCHEDULES = {
    'constant': optimizers.constant,
    'cosine': optimizers.cosine,
    'inverse_square_root': optimizers.inverse_square_root,
}
# What is kept of a block for the backward pass, where remat is on.
POLICIES = {'nothing': None, 'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16, 'float16': jnp.float16}

# A number that is itself a function is a section of its own, found by the key it stands under.
NESTED = {'process': PROCESSES, 'decay': DECAYS, 'w': SPECTRA, 'along': OUTPUTS,
          'diffusion': DIFFUSIONS, 'last': LAST_STEPS, 'schedule': FACTORS}
# And arrays are what its section's row returns, by name.
MADE = {'angles': ANGLES}
