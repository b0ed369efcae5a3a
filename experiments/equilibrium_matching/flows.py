"""Distances of samples integrated over time: ODE and SDE solvers, wrong step sizes, noised records."""

import jax
from jax import numpy as jnp
import numpy as np

from eqflow import arrays, descent, grids, samplers
from eqflow.config import rows, tables
from eqflow.samplers import diffusions
from experiments.equilibrium_matching import descents, measure

LEVELS = (0.25, 0.5, 0.75)
# Rows that denoise partly noised records by descent; all others integrate over time.
DESCENDED = 'eqm', 'gain_1', 'dot'


def process_and_output(model: measure.Training) -> tuple:
  """The process and the output of the network's config."""
  config = model.config
  process = rows.bind(tables.PROCESSES, config.process, 'process')
  return process, rows.bind(tables.OUTPUTS, config.output, 'output')


def ode(model: measure.Training, row: str) -> dict:
  """{solver and steps: distance}, and {best} with precision and recall."""
  process, output = process_and_output(model)
  found, kept = {}, {}
  for solver, counts in ((samplers.ddim, (25, 50, 100)), (samplers.heun, (25,)),
                         (samplers.adams_bashforth, (50,))):
    for steps in counts:
      name = f'{arrays.name_of(solver)} {steps}'
      kept[name] = measure.integrated(model, solver(process, output), grids.uniform(steps))
      found[name] = measure.distance(model.data, kept[name])
  name = measure.best(found)
  return dict(distances=found,
              best=dict(solver=name, distance=found[name]) | measure.details(model.data, kept[name]))


def stochastic(model: measure.Training, row: str) -> dict:
  """{diffusion and steps: distance} of the SDE with the flow's marginals."""
  process, output = process_and_output(model)
  found, kept = {}, {}
  for diffusion, norm, steps in (
      (diffusions.sigma, 1.0, 50), (diffusions.sigma, 1.0, 100), (diffusions.sigma, 1.0, 250),
      (diffusions.sigma, 0.25, 100),
      (diffusions.increasing_decreasing, 1.0, 100)):
    name = f'{arrays.name_of(diffusion)} {norm:g} {steps}'
    made = samplers.sde(process, output, diffusion=jax.tree_util.Partial(diffusion, norm=norm))
    kept[name] = measure.integrated(model, made, grids.uniform(steps))
    found[name] = measure.distance(model.data, kept[name])
  name = measure.best(found)
  return dict(distances=found,
              best=dict(solver=name, distance=found[name]) | measure.details(model.data, kept[name]))


def step_sizes(model: measure.Training, row: str) -> dict:
  """{factor: distance} of 50 Euler steps, each with its length multiplied by the factor."""
  found = {}
  for factor in (0.4, 0.7, 0.9, 1.0, 1.1, 1.5, 2.0, 2.5):
    ends = [_euler(model.predict(model.labels[rows]), model.noise[rows], factor)
            for rows in measure.in_batches(model)]
    found[factor] = measure.distance(model.data, np.concatenate(ends)[:len(model.noise)])
  return found


@jax.jit
def _euler(predict, z, factor):
  # A factor above 1 leads to times below 0, which the network has not seen in training.
  def step(z, k):
    t = jnp.full(len(z), 1 - factor * k / 50)
    return arrays.combine((1, z), (-factor / 50, predict(z, t))), None
  return jax.lax.scan(step, z, jnp.arange(50))[0]


def noisy(model: measure.Training, row: str) -> dict:
  """{t0: {method: distance}} from z = (1 - t0) x + t0 eps.

  Descents do not need t0. A flow starts at t = t0 (`at_level`) or, t0 unknown, at t = 1 (`at_1`).
  """
  clean = measure.records(model.data)[0]
  clean = clean if len(clean) == len(model.noise) else clean[:len(model.noise)]
  found = {}
  for level in LEVELS:
    z = ((1 - level) * clean + level * model.noise).astype(np.float32)
    if row in DESCENDED:
      size = descents.step_of(row)
      states = measure.descent_path(model, descent.gradient_descent(size), 250, z=z)
      # Norms are rescaled to gain 4, so that a threshold means the same distance from data for all.
      rows = descents.by_threshold(model, states, descents.norms_of(states, descents.STEP))
      found[level] = dict(threshold=rows[3.5], rows=rows,
                          fixed=measure.curve(model.data, states[::5], 5))
    else:
      process, output = process_and_output(model)
      solver = samplers.ddim(process, output)
      found[level] = {name: measure.distance(model.data, measure.integrated(
          model, solver, grids.uniform(50, start=start), z))
          for name, start in (('at_1', 1.0), ('at_level', level))}
    found[level]['corrupted'] = measure.distance(model.data, z)
  return found
