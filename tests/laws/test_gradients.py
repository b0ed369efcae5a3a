"""Derivatives of a sample are finite and equal central differences, from pure noise to data."""

import functools
import itertools

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np
import pytest

from eqflow import arrays, grids, outputs, processes, samplers
from eqflow.mix import Mix
from tests import rows
from tests.laws.solvers import SOLVERS, accepts, predict

KEYS = jax.random.split(jax.random.key(0), 2)
PROCESSES = {**rows.PROCESSES, 'shifted variance_preserving': Partial(
    processes.shifted, process=rows.PROCESSES['variance_preserving'], shift=3.0)}
# Times between the entries of a table, at which its velocity jumps.
GRIDS = {'noise to data': [1.0, 0.6215, 0.3145, 0.1075, 0.0],
         'noise to noise': [1.0, 0.6215, 0.3145, 0.1075, 0.0245],
         'almost noise to data': [0.9895, 0.6215, 0.3145, 0.1075, 0.0]}
# Their gain bends at a time inside the grid: a step of `adaptive` over it has an error of 1e-9, which
# moves with the bend, and differences divide it by 1e-4.
BENT = 'equilibrium_truncated', 'equilibrium_piecewise'
WHAT = 'time 1', 'time 2', 'time 3', 'process', 'solver', 'network'


def _grid(name, where):
  """On `edm`, where t = 1 is not noise, from 20."""
  return np.array(GRIDS[where]) * (20 if name == 'edm' else 1)


def _moved(name, part):
  """The process with its numbers changed by this part; a table changes between its ends."""
  def leaf(a):
    return a * (1 + part) if np.ndim(a) == 0 else a + part * 0.01 * np.sin(
        np.pi * np.arange(len(a)) / (len(a) - 1))
  return jax.tree.map(leaf, arrays.pytree(PROCESSES[name]))


def _end(change, solver, process, output, grid):
  """A number that depends on the whole sample, after six relative changes, one for each of WHAT."""
  make, number = SOLVERS[solver]
  process = _moved(process, change[3])
  made = make(process, output, number * (1 + change[4]))
  times = grid * (1 + jnp.concatenate([jnp.zeros(1), change[:3], jnp.zeros(1)]))
  z = jnp.array([[0.3], [-1.0]]) * jnp.hypot(*process(grid[0]))
  x = samplers.sample(made, functools.partial(predict, w=1.5 * (1 + change[5])), z, times, KEYS)
  return x[0, 0] - 2 * x[1, 0]


def _chosen(names, i):
  """The i-th of these outputs: one program serves all."""
  spread = lambda out, process, t: Mix(*(
      jnp.broadcast_to(a, jnp.shape(t)).astype(jnp.float64) for a in out(process, t)))
  return lambda process, t: jax.lax.switch(i, [
      functools.partial(spread, rows.OUTPUTS[name], process) for name in names], t)


def _compared(both, grid, i):
  """(derivatives, the nearer of two central differences of fourth order) in the six changes.

  On `edm` scores bend so much that 1e-4 is too coarse; a table has rounding for which 3e-5 is too fine.
  """
  at = lambda change: float(both(jnp.asarray(change), grid, i)[0])
  found = np.asarray(both(jnp.zeros(len(WHAT)), grid, i)[1])
  differences = np.array([
      [(8 * (at(h * e) - at(-h * e)) - (at(2 * h * e) - at(-2 * h * e))) / (12 * h)
       for e in np.eye(len(WHAT))] for h in (3e-5, 1e-4)])
  nearer = abs(differences - found).argmin(0)
  return found, differences[nearer, np.arange(len(WHAT))]


def law(solver, process, names=tuple(rows.OUTPUTS)):
  """Derivatives on all grids that the solver's check accepts, with each of these outputs.

  {'cases', 'not finite', 'wrong' (by more than 1e-6), 'worst'}: errors are relative to the difference,
  or to a thousandth of the largest of the six. `adaptive` skips the outputs BENT.
  """
  names = [name for name in names if not (solver.startswith('adaptive') and name in BENT)]
  @jax.jit
  def both(change, grid, i):
    end = lambda change: _end(change, solver, process, _chosen(names, i), grid)
    if solver.startswith('adaptive'):
      return end(change), jax.jacfwd(end)(change)
    return jax.value_and_grad(end)(change)

  make, number = SOLVERS[solver]
  counts = {'cases': 0, 'not finite': 0, 'wrong': 0, 'worst': 0.0}
  for i, name in enumerate(names):
    made = make(PROCESSES[process], rows.OUTPUTS[name], number)
    for where in GRIDS:
      grid = _grid(process, where)
      if accepts(made, grid):
        found, expected = _compared(both, grid, i)
        error = (abs(found - expected) / np.maximum(abs(expected), 1e-3 * abs(expected).max())).max()
        counts['cases'] += 1
        counts['not finite'] += not np.isfinite(found).all()
        counts['wrong'] += not error < 1e-6
        counts['worst'] = max(counts['worst'], float(np.nan_to_num(error, nan=np.inf)))
  return counts


# Every solver, each on one process; all pairs take an hour, in experiments.laws.solvers.
# The steps of `adaptive` at its own tolerance jump as a time moves; 'adaptive precise' is compared.
@pytest.mark.parametrize('solver,process', list(zip(
    (name for name in SOLVERS if name != 'adaptive'), itertools.cycle(PROCESSES))))
@pytest.mark.long
def test_derivatives_are_central_differences(solver, process, x64):
  counts = law(solver, process)
  assert counts['not finite'] == counts['wrong'] == 0, counts


def test_derivatives_are_central_differences_from_pure_noise_to_data(x64):
  counts = law('unipc 3', 'variance_preserving', ('v',))
  assert counts['cases'] == 3 and counts['not finite'] == counts['wrong'] == 0, counts


def _tanh(z, t):
  return jnp.tanh(3 * z)


@pytest.mark.parametrize('make,slope', [
    (samplers.heun, 0.0304067), (samplers.dpmpp_3m, -0.0742275),
    *(pytest.param(*row, marks=pytest.mark.long) for row in [
        (samplers.dpmpp_2m, -0.0666848), (samplers.unipc, -0.0696653)])])
def test_the_derivative_in_an_inner_time_from_pure_noise(make, slope, x64):
  solver = make(processes.linear, outputs.u)
  end = lambda m: samplers.sample(solver, _tanh, jnp.ones((1, 1)), jnp.stack([1.0, m, 0.3, 0.1])).sum()
  with jax.disable_jit():
    np.testing.assert_allclose(jax.grad(end)(0.6), slope, atol=1e-7)


@pytest.mark.parametrize('make,slope', [
    (samplers.dpmpp_2m, -0.0170186),
    pytest.param(samplers.unipc, -0.0173176, marks=pytest.mark.long)])
def test_the_derivative_in_the_shift_of_a_process(make, slope, x64):
  def end(shift):
    process = Partial(processes.shifted, process=processes.linear, shift=shift)
    solver = make(process, outputs.displacement)
    return samplers.sample(solver, _tanh, jnp.ones((1, 1)), grids.uniform(4)).sum()
  with jax.disable_jit():
    np.testing.assert_allclose(jax.grad(end)(3.0), slope, atol=1e-7)


def test_an_infinite_velocity_stays_infinite_and_sigma_has_no_slope_in_its_numbers(x64):
  process = lambda shift, beta: Partial(processes.shifted, shift=shift, process=Partial(
      processes.variance_preserving, beta_min=beta, beta_max=20.0))
  assert processes.rate(process(3.0, 0.1), 0.0).eps == np.inf
  slopes = jax.jit(jax.grad(lambda *numbers: process(*numbers)(0.0).eps, (0, 1)))(3.0, 0.1)
  assert slopes == (0, 0)
