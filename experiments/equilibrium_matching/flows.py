"""Distances of samples along times: ODE and SDE solvers, wrong step sizes, partly noised starts."""

import jax
from jax import numpy as jnp
import numpy as np

from eqflow import arrays, descent, grids, samplers
from eqflow.config import sections, tables
from eqflow.samplers import diffusions
from experiments.equilibrium_matching import descents, measure

LEVELS = (0.25, 0.5, 0.75)
# What finishes partly noised records by descent, all else along times.
DESCENDED = 'eqm', 'gain_1', 'dot'


def vectors(model: measure.Model) -> tuple:
  """(process, output) of the network's config."""
  config = model.config
  output = sections.bound(tables.OUTPUTS, config.output, 'output', nested=tables.NESTED)
  return tables.PROCESSES[config.process.name], output


def ode(model: measure.Model, row: str) -> dict:
  """{solver and steps: distance}, and {best} with precision and recall."""
  process, output = vectors(model)
  found, kept = {}, {}
  for solver, counts in ((samplers.ddim, (25, 50, 100)), (samplers.heun, (25,)),
                         (samplers.adams_bashforth, (50,))):
    for steps in counts:
      name = f'{arrays.name_of(solver)} {steps}'
      kept[name] = measure.carried(model, solver(process, output), grids.uniform(steps))
      found[name] = measure.distance(model.data, kept[name])
  name = measure.best(found)
  return dict(distances=found,
              best=dict(solver=name, distance=found[name]) | measure.more(model.data, kept[name]))


def stochastic(model: measure.Model, row: str) -> dict:
  """{diffusion and steps: distance} of the SDE with the flow's marginals."""
  process, output = vectors(model)
  found, kept = {}, {}
  for diffusion, norm, steps in (
      (diffusions.sigma, 1.0, 50), (diffusions.sigma, 1.0, 100), (diffusions.sigma, 1.0, 250),
      (diffusions.sigma, 0.25, 100),
      (diffusions.increasing_decreasing, 1.0, 100)):
    name = f'{arrays.name_of(diffusion)} {norm:g} {steps}'
    made = samplers.sde(process, output, diffusion=jax.tree_util.Partial(diffusion, norm=norm))
    kept[name] = measure.carried(model, made, grids.uniform(steps))
    found[name] = measure.distance(model.data, kept[name])
  name = measure.best(found)
  return dict(distances=found,
              best=dict(solver=name, distance=found[name]) | measure.more(model.data, kept[name]))


def step_sizes(model: measure.Model, row: str) -> dict:
  """{factor: distance} of 50 of Euler's steps that are all too long or too short by a factor."""
  found = {}
  for factor in (0.4, 0.7, 0.9, 1.0, 1.1, 1.5, 2.0, 2.5):
    ends = [_euler(model.predict(model.labels[rows]), model.noise[rows], factor)
            for rows in measure.in_batches(model)]
    found[factor] = measure.distance(model.data, np.concatenate(ends)[:len(model.noise)])
  return found


@jax.jit
def _euler(predict, z, factor):
  # Past data the network is asked about times that it never saw, as a step too long makes it.
  def step(z, k):
    t = jnp.full(len(z), 1 - factor * k / 50)
    return arrays.combine((1, z), (-factor / 50, predict(z, t))), None
  return jax.lax.scan(step, z, jnp.arange(50))[0]


def noisy(model: measure.Model, row: str) -> dict:
  """{t0: {way: distance}}: from (1 - t0) x + t0 eps, of a level that only `told` is told."""
  clean = measure.records(model.data)[0]
  clean = clean if len(clean) == len(model.noise) else clean[:len(model.noise)]
  found = {}
  for level in LEVELS:
    z = ((1 - level) * clean + level * model.noise).astype(np.float32)
    if row in DESCENDED:
      size = descents.step_of(row)
      states = measure.descent_path(model, descent.gradient_descent(size), 250, z=z)
      # Norms as those of gain 4: one threshold then means one distance from data for every gain.
      rows = descents.by_threshold(model, states, descents.norms_of(states, descents.STEP))
      found[level] = dict(threshold=rows[3.5], rows=rows,
                          fixed=measure.curve(model.data, states[::5], 5))
    else:
      process, output = vectors(model)
      solver = samplers.ddim(process, output)
      found[level] = {name: measure.distance(model.data, measure.carried(
          model, solver, grids.uniform(50, start=start), z))
          for name, start in (('wrong', 1.0), ('told', level))}
    found[level]['corrupted'] = measure.distance(model.data, z)
  return found
