"""A time that repeats is a step of no length: it changes no sample, no gradient and no count."""

import functools

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from eqflow import couplings, likelihood, outputs, processes, samplers
from eqflow.config import tables
from tests.laws.solvers import SOLVERS, predict

LINEAR, U = processes.linear, outputs.u
KEYS = jax.random.split(jax.random.key(0), 2)
# Of four steps each: to data, and to a state with noise.
GRIDS = {'to data': [0.95, 0.7, 0.4, 0.1, 0.0], 'to noise': [0.95, 0.7, 0.4, 0.1, 0.05]}
LENGTH = 8


def repeated(grid):
  """{where: the grid of LENGTH times, some of them repeated}."""
  extra = LENGTH - len(grid)
  at = {'start': [0] * extra, 'inside': [2] * extra, 'end': [-1] * extra, 'everywhere': [0, 2, -1]}
  grid = np.asarray(grid)
  return {where: np.sort(np.append(grid, grid[i]))[::-1].copy() for where, i in at.items()}


def _solver(name):
  make, number = SOLVERS[name]
  return make(LINEAR, U, number)


MADE = []


def _counted(z, t):
  jax.debug.callback(lambda: MADE.append(1))
  return predict(z, t)


def _calls(solver, grid):
  """(sample, calls of the network)."""
  MADE.clear()
  end = np.asarray(samplers.sample(solver, _counted, np.float32([[0.3], [-1.0]]), grid, KEYS))
  jax.effects_barrier()
  return end, len(MADE)


# Alike enough to another row for the long tests alone; a new row of the table runs in all.
ALIKE = 'euler', 'ancestral', 'edm', 'adams_bashforth', 'dpmpp_2m'


# Those of adaptive depend on the sample: tests/samplers/test_runge_kutta.py counts them.
@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.long] * (name in ALIKE or name not in tables.SOLVERS))
    for name in SOLVERS if not name.startswith('adaptive')])
def test_repeated_times_change_neither_the_sample_nor_the_calls(name):
  solver = _solver(name)
  for grid in GRIDS.values():
    end, made = _calls(solver, np.asarray(grid))
    assert made == samplers.evaluations(solver, grid) and np.isfinite(end).all()
    padded = repeated(grid)['everywhere']
    found, again = _calls(solver, padded)
    np.testing.assert_array_equal(found, end)
    assert again == made == samplers.evaluations(solver, padded)
  assert solver.traits.stages == samplers.base.calls(solver, 0.25)


@functools.cache
def law(name, way):
  """Repeats of a solver's grids: {'cases', 'beyond' 4 units in the last place, 'not finite'}.

  Each case is a sample and its derivative in the network's parameter, with repeats and without: one
  operation at a time ('eager'), compiled ('jit'), or all grids of one length at once, differentiated
  through vmap ('vmap').
  """
  solver, counts = _solver(name), dict.fromkeys(('cases', 'beyond', 'not finite'), 0)
  z = jnp.array([[0.3], [-1.0]])
  sample = lambda grid, w: samplers.sample(solver, functools.partial(predict, w=w), z, grid, KEYS)
  both = lambda grid, w: jnp.stack([sample(grid, w), (
      jax.jacfwd if name.startswith('adaptive') else jax.jacrev)(lambda w: sample(grid, w))(w)])
  all_at_once = lambda grids, w: jnp.stack([jax.vmap(sample, (0, None))(grids, w), (
      jax.jacfwd if name.startswith('adaptive') else jax.jacrev)(
          lambda w: jax.vmap(sample, (0, None))(grids, w))(w)], 1)
  compiled, together = both if way == 'eager' else jax.jit(both), jax.jit(all_at_once)
  samples = lambda grids: np.asarray(
      together(grids, 1.5) if way == 'vmap' else [compiled(each, 1.5) for each in grids])
  with jax.disable_jit(way == 'eager' and not name.startswith('adaptive')):
    for grid in GRIDS.values():
      once, = samples(np.asarray([grid]))
      for each in samples(np.stack(list(repeated(grid).values()))):
        unit = np.finfo(each.dtype).eps * abs(once).max(axis=(1, 2), keepdims=True)
        counts['cases'] += 1
        counts['beyond'] += int((abs(each - once) > 4 * unit).any())
        counts['not finite'] += int(not np.isfinite(each).all())
  return counts


@pytest.mark.parametrize('way', ['eager', 'jit', 'vmap'])
@pytest.mark.parametrize('name', SOLVERS)
@pytest.mark.long
def test_repeated_times_change_neither_sample_nor_gradient(name, way, x64):
  counts = law(name, way)
  assert counts['cases'] == 8 and counts['beyond'] == counts['not finite'] == 0, counts


def test_grids_with_other_repeats_are_sampled_at_once(x64):
  counts = law('dpmpp_3m', 'vmap')
  assert counts['beyond'] == counts['not finite'] == 0, counts


def test_a_grid_of_one_time_changes_nothing(x64):
  z, grids = jnp.ones((1, 1)), jnp.array([[1.0, 1.0, 1.0], [1.0, 0.5, 0.0], [0.4, 0.4, 0.0]])
  run = lambda w: jax.vmap(lambda grid: samplers.sample(
      samplers.unipc(LINEAR, U), lambda z, t: w * z, z, grid))(grids)
  np.testing.assert_array_equal(run(0.5)[0], z)
  # One step of z_s = z_t (1 + (s - t) w).
  np.testing.assert_allclose(jax.jacrev(run)(0.5)[:, 0, 0], [0, -0.75, -0.4], atol=1e-12)


def test_the_values_of_other_implementations_are_kept(x64):
  z, grid = jnp.ones((1, 1)), np.array([1.0, 0.7, 0.4, 0.4, 0.1, 0.0])
  found = samplers.sample(samplers.unipc(LINEAR, U), lambda z, t: jnp.tanh(3 * z), z, grid)
  np.testing.assert_allclose(found, 0.1383220, atol=1e-7)


@pytest.mark.parametrize('make', [
    samplers.unipc, *(pytest.param(make, marks=pytest.mark.long) for make in (
        samplers.ddim, samplers.dpmpp_2m, samplers.dpmpp_3m))])
def test_the_derivative_on_a_grid_that_repeats_data(make, x64):
  end = lambda w: samplers.sample(make(LINEAR, U), lambda z, t: w * z, jnp.ones((1, 1)),
                                  np.array([1, 0.5, 0, 0]))
  np.testing.assert_allclose(jax.jit(jax.jacrev(end))(0.5), [[-0.75]], rtol=1e-12)


def _midpoint(predict, z, state, t, s, keys):
  middle = z + (s - t) / 2 * predict(z, t)
  return z + (s - t) * predict(middle, (s + t) / 2), state


def _kutta(predict, z, state, t, s, keys):
  """The classical rule with its stages in a loop; it evaluates at s, except at data."""
  def stage(carry, row):
    slope, total = carry
    ahead, weight = row
    slope = predict(z + ahead * (s - t) * slope, t + ahead * (s - t))
    return (slope, total + weight * slope), None
  rows = jnp.array([[0, 1 / 6], [1 / 2, 1 / 3], [1 / 2, 1 / 3]])
  (slope, total), _ = jax.lax.scan(stage, (jnp.zeros_like(z), jnp.zeros_like(z)), rows)
  last = lambda: z + (s - t) * (total + predict(z + (s - t) * slope, s) / 6)
  return jax.lax.cond(s > 0, last, lambda: z + (s - t) * total * 6 / 5), state


@pytest.mark.parametrize('step,inside,onto_data', [(_midpoint, 2, 2), (_kutta, 4, 3)])
@pytest.mark.parametrize('end', ['to data', 'to noise'])
def test_the_calls_of_a_step_of_your_own_are_counted_whatever_it_states(step, inside, onto_data, end):
  own = samplers.Solver(samplers.no_state, step)
  for grid in (np.asarray(GRIDS[end]), *repeated(GRIDS[end]).values()):
    expected = 3 * inside + (onto_data if end == 'to data' else inside)
    assert samplers.evaluations(own, grid) == _calls(own, grid)[1] == expected


def test_the_straightness_of_a_path_with_repeats(x64):
  grid = np.array([1.0, 0.5, 0.5, 0.0])
  line = np.float64(grid)[:, None, None] * np.ones((1, 2, 3))
  np.testing.assert_array_equal(couplings.straightness(line, grid), 0)
  bent, once = line**2, [0, 1, 3]
  both = jax.jit(jax.value_and_grad(lambda a, g: couplings.straightness(a, g).sum()))
  value, slope = (both(path, g) for path, g in ((bent, grid), (bent[once], grid[once])))
  np.testing.assert_allclose(value[0], slope[0], rtol=1e-14)
  np.testing.assert_allclose(value[1].sum(), slope[1].sum(), atol=1e-14)
  assert jnp.isfinite(value[1]).all()


def test_the_likelihood_on_a_grid_with_repeats(x64):
  x = jnp.array([[0.4], [-0.3]])
  find = lambda times: likelihood.log_likelihood(predict, x, process=LINEAR, output=U, times=times)
  for once, many in (([0.01, 0.4, 1.0], [0.01, 0.01, 0.4, 0.4, 1.0]), ([0.01, 1.0], [0.01, 1.0, 1.0])):
    for a, b in zip(jax.tree.leaves(find(once)), jax.tree.leaves(find(many))):
      np.testing.assert_array_equal(a, b)
