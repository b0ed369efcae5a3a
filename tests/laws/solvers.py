"""The solvers that the laws run over: each row of the config's table, and those that its numbers make.

A new row of the tables of solvers, diffusions and last steps is here by being there.
"""

from jax import numpy as jnp
from jax.tree_util import Partial
from ml_collections import ConfigDict

from eqflow import outputs, samplers
from eqflow.config import tables
from eqflow.config.rows import bind

STEPS = 4


def _row(name, **choices):
  """(process, output, number) -> the solver of a config; it has no number."""
  return lambda process, output, number: bind(
      tables.SOLVERS, ConfigDict(dict(name=name, **choices)), 'sample.solver', process=process,
      output=output, num_steps=STEPS)


# {name: ((process, output, number) -> solver, number)}: the laws differentiate in the number.
SOLVERS = {
    **{name: (_row(name), 0.0) for name in tables.SOLVERS},
    'ddim churn': (lambda p, o, c: samplers.ddim(p, o, churn=c), 0.3),
    'ddim eta': (lambda p, o, c: samplers.ddim(p, o, eta=c), 0.5),
    'ddpm': (lambda p, o, c: samplers.ddim(p, o, churn=c), 0.5),
    'ancestral variance': (lambda p, o, c: samplers.ancestral(p, o, variance=c), 0.4),
    'edm churn': (lambda p, o, c: samplers.edm(p, o, num_steps=STEPS, churn=c), 0.8),
    'euler along': (lambda p, o, c: samplers.euler(p, o, along=outputs.v), 0.0),
    'heun along': (lambda p, o, c: samplers.heun(p, o, along=outputs.displacement), 0.0),
    'dpmpp_2m heun': (lambda p, o, c: samplers.dpmpp_2m(p, o, heun=True), 0.0),
    'dpmpp_2m churn': (lambda p, o, c: samplers.dpmpp_2m(p, o, churn=c), 0.3),
    'dpmpp_3m curvature': (lambda p, o, c: samplers.dpmpp_3m(p, o, curvature=c), 0.5),
    'dpmpp_3m churn': (lambda p, o, c: samplers.dpmpp_3m(p, o, churn=c, heun=True), 0.3),
    **{f'unipc {order}{" bh1" * bh1}': (lambda p, o, c, order=order, bh1=bh1: samplers.unipc(
        p, o, order=order, bh1=bh1), 0.0) for order in (1, 2, 3) for bh1 in (False, True)},
    'adaptive precise': (lambda p, o, c: samplers.adaptive(p, o, rtol=1e-13, atol=1e-13), 0.0),
    **{f'sde {name}': (lambda p, o, c, row=row: samplers.sde(
        p, o, diffusion=Partial(row.function, norm=c)), 0.7)
       for name, row in tables.DIFFUSIONS.items()},
    **{f'sde last_{name}': (lambda p, o, c, row=row: samplers.sde(p, o, last=row.function), 0.0)
       for name, row in tables.LAST_STEPS.items()},
}


def predict(z, t, *, w=1.5):
  """A network with an output that bends with z, t and its parameter w."""
  return jnp.tanh(w * z) + w * jnp.cos(t)[:, None]


def field(z, t):
  """A network without parameters that bends with z and t."""
  return jnp.tanh(z) + t[:, None] * jnp.cos(z)


def accepts(solver, grid) -> bool:
  """Whether the solver's check accepts the grid."""
  try:
    solver.check(grid)
  except ValueError:
    return False
  return True
