"""Sampling by optimization: descend a field, such as that of Equilibrium Matching, to its zeros."""

from eqflow.descent.loops import descend, descend_refilled, descend_until, evaluations
from eqflow.descent.methods import (
    Moving, Optimizing, Point, Schedule, constant, cosine, from_optax, gradient_descent, harmonic, heun,
    langevin, nesterov)

__all__ = [
    'Moving', 'Optimizing', 'Point', 'Schedule', 'constant', 'cosine', 'descend',
    'descend_refilled', 'descend_until', 'evaluations', 'from_optax', 'gradient_descent',
    'harmonic', 'heun', 'langevin', 'nesterov']
