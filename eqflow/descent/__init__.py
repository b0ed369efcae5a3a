"""Sampling by optimization: descend a field, such as Equilibrium Matching, to its zeros.

Each method is a factory of a Descent: `descend(gradient_descent(0.003), field, z, num_steps=250)`.
"""

from eqflow.descent.base import (
    Descent, Schedule, State, at_start, constant, cosine, evaluations, harmonic)
from eqflow.descent.loops import descend, descend_path, descend_refilled, descend_until
from eqflow.descent.methods import from_optax, gradient_descent, heun, langevin, nesterov

__all__ = [
    'Descent', 'Schedule', 'State', 'at_start', 'constant', 'cosine', 'descend', 'descend_path',
    'descend_refilled', 'descend_until', 'evaluations', 'from_optax', 'gradient_descent', 'harmonic',
    'heun', 'langevin', 'nesterov']
