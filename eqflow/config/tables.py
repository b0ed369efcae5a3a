"""Every name that a config may use: its function, and its numbers with their limits."""

import functools

import jax
from jax import numpy as jnp
import optax

from eqflow import (
    couplings, densities, descent, energies, fields, grids, outputs, processes, samplers, weights)
from eqflow.config.kinds import flag, number, one_of, optional, several, whole
from eqflow.config.rows import Needed, made, row, section_of
from eqflow.models import dit, edm2, mlp
from eqflow.samplers import diffusions
from eqflow.training import optimizers

ANY, POSITIVE, NOT_NEGATIVE = number(), number(above=0), number(0)
FRACTION, BELOW_ONE, COUNT = number(0, 1), number(0, below=1), whole(1)
# Of what is computed one by one while a config is read: steps of a grid, entries of a table, layers.
STEPS, TABLE, WIDTH, DEPTH = whole(1, 10**6), whole(2, 10**6), whole(1, 2**17), whole(1, 256)

_SIGMA_DATA = Needed(POSITIVE, 0.5)
_NORMAL = dict(mean=Needed(ANY, 0.0), std=Needed(POSITIVE, 1.0))

# Tables of alpha_bar; `discrete` makes a process of one.
_BETAS = dict(num=TABLE, beta_min=POSITIVE, beta_max=POSITIVE)
_COSINE = dict(num=TABLE, offset=ANY, max_beta=FRACTION)


def _zero_snr(table):
  @functools.wraps(table)
  def rescaled(*args, **numbers):
    return processes.tables.zero_terminal_snr(table(*args, **numbers))
  return rescaled


ANGLES = {
    'linear': made(processes.tables.linear, **_BETAS),
    'scaled_linear': made(processes.tables.scaled_linear, **_BETAS),
    'cosine': made(processes.tables.cosine, **_COSINE),
    'linear_zero_snr': made(_zero_snr(processes.tables.linear), **_BETAS),
    'scaled_linear_zero_snr': made(_zero_snr(processes.tables.scaled_linear), **_BETAS),
    'cosine_zero_snr': made(_zero_snr(processes.tables.cosine), **_COSINE),
}


def _discrete(angles):
  return processes.table(angles)


_VP = dict(beta_min=Needed(ANY, 0.1), beta_max=Needed(ANY, 20.0))
PROCESSES = {
    'linear': row(processes.linear),
    'cosine': row(processes.cosine),
    'variance_preserving': row(processes.variance_preserving, **_VP),
    'edm': row(processes.edm),
    'sub_vp': row(processes.sub_vp, **_VP),
    'discrete': made(_discrete, angles=Needed(section_of(ANGLES), {'name': 'cosine'})),
}
_SHIFTED = Needed(section_of(PROCESSES), {'name': 'linear'})
PROCESSES |= {
    'shifted': row(processes.shifted, process=_SHIFTED, shift=Needed(POSITIVE, 3.0)),
    'logsnr_shifted': row(processes.logsnr_shifted, process=_SHIFTED, shift=Needed(ANY, -2.0)),
}

# An equilibrium field decays to zero at data. Past `start` it falls: 1 would leave no interval.
_START = number(0, 1 - 1e-6)
DECAYS = {
    'constant': row(outputs.constant_decay, gain=POSITIVE),
    'linear': row(outputs.linear_decay, gain=POSITIVE),
    'truncated': row(outputs.truncated_decay, start=Needed(_START, 0.8), gain=POSITIVE),
    'piecewise': row(outputs.piecewise_decay, start=Needed(number(most=1 - 1e-6, above=0), 0.8),
                     height=Needed(ANY, 0.5), gain=POSITIVE),
}
OUTPUTS = {
    'x': row(outputs.x),
    'eps': row(outputs.eps),
    'v': row(outputs.v),
    'u': row(outputs.u),
    'displacement': row(outputs.displacement),
    'score': row(outputs.score),
    'edm': row(outputs.edm, sigma_data=_SIGMA_DATA),
    'equilibrium': row(outputs.equilibrium, decay=Needed(section_of(DECAYS), {'name': 'linear'})),
}
# Outputs that vanish at data, so that they may be descended.
DESCENDED = 'equilibrium', 'u', 'displacement'
# Outputs in which a loss may be measured.
SPACES = {name: row.function for name, row in OUTPUTS.items() if not row.numbers}

DENSITIES = {
    'uniform': row(densities.uniform),
    'uniform_on': made(densities.uniform_on, low=Needed(ANY, 0.1), high=Needed(ANY, 0.9)),
    'logit_normal': made(densities.logit_normal, **_NORMAL),
    'lognormal': made(densities.lognormal, **_NORMAL),
    'mode': made(densities.mode, scale=Needed(ANY, 1.0)),
    'cosmap': row(densities.cosmap),
    'adaptive': made(densities.adaptive, 'process', low=Needed(ANY, -10.0), high=Needed(ANY, 10.0),
                     bins=TABLE, keep=number(above=0, below=1)),
}
_SPECTRA = {
    'elbo': row(weights.elbo),
    'sigmoid': row(weights.sigmoid, bias=Needed(ANY, 2.0)),
    'flow_matching': row(weights.flow_matching),
    'indi': row(weights.indi),
    'edm': row(weights.edm_logsnr, sigma_data=_SIGMA_DATA, **_NORMAL),
    'sd3': row(weights.sd3, **_NORMAL),
    'p2': row(weights.p2, gamma=Needed(ANY, 1.0), k=ANY),
    'min_snr': row(weights.min_snr, gamma=Needed(POSITIVE, 5.0)),
}
SPECTRA = _SPECTRA | {
    'monotone': row(weights.monotone, w=Needed(section_of(_SPECTRA), {'name': 'elbo'}),
                    peak=Needed(ANY, 0.0)),
}
WEIGHTS = {
    'ones': row(weights.ones),
    'edm': row(weights.edm, sigma_data=_SIGMA_DATA),
    'on_logsnr': row(weights.on_logsnr, 'density', w=Needed(section_of(SPECTRA), {'name': 'elbo'})),
}
COUPLINGS = {
    'independent': row(couplings.independent),
    'optimal_transport': row(couplings.optimal_transport, 'group'),
    'sinkhorn': row(couplings.sinkhorn, 'group', regularization=Needed(POSITIVE, 0.05),
                    tolerance=POSITIVE),
    'pairs': row(couplings.given, 'eps'),
}
SCALES = {
    'unit': row(fields.unit),
    'unit_variance': row(fields.unit_variance, sigma_data=_SIGMA_DATA),
}
C_NOISE = {
    'time': row(fields.time),
    'logsnr': row(fields.logsnr),
    'quarter_log_sigma': row(fields.quarter_log_sigma),
    'table_index': row(fields.table_index),
    'none': row(fields.none),
}
# The energy; its gradient is the field. None: the network is the field.
ENERGIES = {
    'none': row(None),
    'dot': row(energies.dot),
    'squared_norm': row(energies.squared_norm),
    'negative_squared_norm': row(energies.negative_squared_norm),
}

DIFFUSIONS = {
    'constant': row(diffusions.constant, norm=ANY),
    'sigma': row(diffusions.sigma, norm=ANY),
    'linear': row(diffusions.linear, norm=ANY),
    'decreasing': row(diffusions.decreasing, norm=ANY),
    'increasing_decreasing': row(diffusions.increasing_decreasing, norm=ANY),
    'sbdm': row(diffusions.sbdm, norm=ANY),
}
LAST_STEPS = {
    'mean': row(samplers.last_mean),
    'tweedie': row(samplers.last_tweedie),
    'euler': row(samplers.last_euler),
}
_ALONG = section_of(OUTPUTS)


def _solver(function, *received, **numbers):
  return made(function, 'process', 'output', *received, **numbers)


SOLVERS = {
    'ddim': _solver(samplers.ddim, churn=FRACTION, eta=optional(FRACTION)),
    'euler': _solver(samplers.euler, along=_ALONG),
    'heun': _solver(samplers.heun, along=_ALONG),
    'ancestral': _solver(samplers.ancestral, variance=FRACTION),
    'edm': _solver(samplers.edm, 'num_steps', churn=NOT_NEGATIVE, sigma_min=NOT_NEGATIVE,
                   sigma_max=NOT_NEGATIVE, noise_scale=NOT_NEGATIVE),
    'sde': _solver(samplers.sde, diffusion=section_of(DIFFUSIONS), last=section_of(LAST_STEPS)),
    'adams_bashforth': _solver(samplers.adams_bashforth),
    'dpmpp_2m': _solver(samplers.dpmpp_2m, 'num_steps', churn=FRACTION, heun=flag),
    'dpmpp_3m': _solver(samplers.dpmpp_3m, 'num_steps', churn=FRACTION, heun=flag, taper=flag,
                        curvature=ANY),
    'unipc': _solver(samplers.unipc, 'num_steps', order=whole(1, 3), bh1=flag),
    'adaptive': _solver(samplers.adaptive, rtol=NOT_NEGATIVE, atol=NOT_NEGATIVE, last=POSITIVE,
                        max_steps=COUNT),
}
# The factor of a step size at each iteration.
FACTORS = {
    'constant': row(descent.constant),
    'cosine': row(descent.cosine, num_steps=Needed(POSITIVE, 100)),
    'harmonic': row(descent.harmonic, half=Needed(POSITIVE, 50)),
}


def _adam(step_size, b1=0.9, b2=0.999):
  return descent.from_optax(optax.adam(step_size, b1, b2))


def _momentum(step_size, momentum):
  return descent.from_optax(optax.sgd(step_size, momentum))


_SIZE, _MOMENTUM = Needed(POSITIVE, 0.003), Needed(BELOW_ONE, 0.9)
_STEP = dict(step_size=_SIZE, schedule=section_of(FACTORS))
DESCENTS = {
    'gradient_descent': made(descent.gradient_descent, **_STEP),
    'nesterov': made(descent.nesterov, momentum=_MOMENTUM, **_STEP),
    'heun_descent': made(descent.heun, **_STEP),
    'langevin': made(descent.langevin, temperature=Needed(NOT_NEGATIVE, 0.1), **_STEP),
    'adam': made(_adam, step_size=_SIZE, b1=BELOW_ONE, b2=BELOW_ONE),
    'momentum': made(_momentum, step_size=_SIZE, momentum=_MOMENTUM),
}
GRIDS = {
    'uniform': made(grids.uniform, 'num_steps', start=ANY, end=ANY),
    'karras': made(grids.karras, 'num_steps', 'process', sigma_min=POSITIVE, sigma_max=POSITIVE,
                   rho=POSITIVE),
    'logsnr': made(grids.logsnr, 'num_steps', 'process', start=Needed(ANY, -8.0), end=Needed(ANY, 8.0),
                   low=ANY, high=ANY),
    'leading': made(grids.leading, 'num_steps', table_size=TABLE, offset=whole(0)),
    'linspace': made(grids.linspace, 'num_steps', table_size=TABLE),
    'trailing': made(grids.trailing, 'num_steps', table_size=TABLE),
}
# Guidance acts where a measure of time is between low and high.
_ENDS = dict(low=Needed(number(infinite=True), 0.2), high=Needed(number(infinite=True), 0.8))


def _interval(measure):
  return made(lambda low, high: dict(measure=measure, low=low, high=high), **_ENDS)


INTERVALS = {
    'always': row(None),
    'time': _interval(fields.time),
    'logsnr': _interval(fields.logsnr),
    'noise_to_signal': _interval(processes.noise_to_signal),
}

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16, 'float16': jnp.float16}
# What a block keeps for the backward pass with remat.
POLICIES = {'nothing': None, 'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
_DTYPES = dict(dtype=one_of(DTYPES), param_dtype=one_of(DTYPES))
_REMAT = dict(remat=flag, remat_policy=one_of(POLICIES))
_MLP = dict(width=WIDTH, depth=DEPTH, final_scale=NOT_NEGATIVE, **_DTYPES)
_DIT = dict(patch=COUNT, width=WIDTH, depth=DEPTH, heads=COUNT, mlp_ratio=POSITIVE,
            learned_positions=flag, doubled=flag, final_scale=NOT_NEGATIVE, **_DTYPES, **_REMAT)
_EDM2 = dict(
    width=WIDTH, multipliers=several(POSITIVE, least=1), blocks=DEPTH, attention=several(COUNT),
    head_width=COUNT, dropout=number(0, 1 - 1e-6), noise_multiplier=optional(POSITIVE),
    embedding_multiplier=optional(POSITIVE), label_balance=FRACTION, concat_balance=FRACTION,
    res_balance=FRACTION, attn_balance=FRACTION, clip=optional(POSITIVE),
    resample_filter=several(ANY, least=1), **_DTYPES, **_REMAT)
MODELS = {
    'mlp': made(mlp.MLP, 'num_classes', **_MLP),
    'dit': made(dit.DiT, 'num_classes', **_DIT | dict(
        patch=Needed(COUNT, 2), width=Needed(WIDTH, 64), depth=Needed(DEPTH, 4),
        heads=Needed(COUNT, 4))),
    **{f'DiT-{size}/{patch}': made(functools.partial(dit.DiT, patch=patch, **numbers), 'num_classes',
                                   **_DIT)
       for size, numbers in dit.SIZES.items() for patch in (2, 4, 8)},
    'edm2': made(edm2.EDM2, 'num_classes', **_EDM2 | dict(width=Needed(WIDTH, 64))),
    **{f'EDM2-{name}': made(
        functools.partial(edm2.EDM2, width=preset['width'], dropout=preset['dropout']), 'num_classes',
        **_EDM2) for name, preset in edm2.PRESETS.items()},
}
# A run may be trained longer if its schedule does not receive num_examples.
SCHEDULES = {
    'constant': row(optimizers.constant),
    'cosine': row(optimizers.cosine, 'num_examples'),
    'inverse_square_root': row(optimizers.inverse_square_root,
                               decay_examples=Needed(POSITIVE, 100_000), rampup_examples=NOT_NEGATIVE),
}
