"""Solvers of the sampling ODE and SDE, for any process and any output of the network.

Each is a factory of a Solver: `sample(ddim(process, output), predict, z, times)`.
"""

from eqflow.samplers.base import (
    Solver, Traits, contributions, evaluations, no_state, run, sample, sample_path)
from eqflow.samplers.multistep import adams_bashforth, dpmpp_2m, dpmpp_3m, unipc
from eqflow.samplers.onestep import ancestral, ddim, edm, euler, heun
from eqflow.samplers.runge_kutta import adaptive
from eqflow.samplers.stochastic import last_euler, last_mean, last_tweedie, sde

__all__ = [
    'Solver', 'Traits', 'adams_bashforth', 'adaptive', 'ancestral', 'contributions', 'ddim', 'dpmpp_2m',
    'dpmpp_3m', 'edm', 'euler', 'evaluations', 'heun', 'last_euler', 'last_mean', 'last_tweedie',
    'no_state', 'run', 'sample', 'sample_path', 'sde', 'unipc']
