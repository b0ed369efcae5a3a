"""The one file with tables of names: what a config may call a function by."""

import functools

from jax import numpy as jnp

from eqflow import descent, fields, outputs, processes, samplers, times, weights
from eqflow.models import dit, mlp
from eqflow.training import optimizer as optimizers

PROCESSES = {
    'linear': processes.linear,
    'cosine': processes.cosine,
    'variance_preserving': processes.variance_preserving,
    'edm': processes.edm,
    'sub_vp': processes.sub_vp,
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
    'uniform': lambda: times.uniform,
    'uniform_on': times.uniform_on,
    'logit_normal': times.logit_normal,
    'lognormal': times.lognormal,
}
WEIGHTS = {
    'ones': weights.ones,
    'edm': weights.edm,
    'on_logsnr': weights.on_logsnr,
}
SPECTRA = {
    'sigmoid': weights.sigmoid,
    'min_snr': weights.min_snr,
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
SOLVERS = {
    'ddim': samplers.ddim,
    'euler': samplers.euler,
    'heun': samplers.heun,
    'ancestral': samplers.ancestral,
    'adaptive': samplers.adaptive,
}
DESCENTS = {
    'gradient_descent': descent.gradient_descent,
    'nesterov': descent.nesterov,
}
GRIDS = {
    'uniform': times.uniform_grid,
    'karras': times.karras_grid,
    'logsnr': times.logsnr_grid,
}
MODELS = {
    'mlp': mlp.MLP,
    'dit': dit.DiT,
    **{f'DiT-{size}/{patch}': functools.partial(dit.DiT, patch=patch, **numbers)
       for size, numbers in dit.SIZES.items() for patch in (2, 4, 8)},
}
SCHEDULES = {
    'constant': optimizers.constant,
    'cosine': optimizers.cosine,
    'inverse_square_root': optimizers.inverse_square_root,
}
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16, 'float16': jnp.float16}

# A number that is itself a function is a section of its own, found by the key it stands under.
NESTED = {'process': PROCESSES, 'decay': DECAYS, 'w': SPECTRA}
