"""A solver of your own: sampled, checked, inverted, counted, and named in errors."""

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np
import pytest

from eqflow import blind_spots, grids, oracles, outputs, processes, samplers
from eqflow.samplers import Solver, Traits

LINEAR, MEAN, STD = processes.linear, 0.7, 0.4
Z = np.array([[-1.0], [0.3], [2.0]])


def _ralston(process, output):
  """Ralston's rule on dz/dt = u, for a network that predicts u: a user's own solver."""
  def step(predict, z, state, t, s, keys):
    def correct():
      middle = z + 2 / 3 * (s - t) * u
      return z + (s - t) * (u + 3 * predict(middle, t + 2 / 3 * (s - t))) / 4
    u = predict(z, t)
    return jax.lax.cond(s > 0, correct, lambda: z + (s - t) * u), state

  def check(times):
    blind_spots.check_grid(times, process=process, output=output, last=True)
    blind_spots.needs_velocity(times, process=process, name='ralston')

  return Solver(samplers.no_state, step, check, Traits('ralston', stages=2))


def _predict(process=LINEAR, output=outputs.u):
  return Partial(oracles.gaussian, process=process, output=output, mean=jnp.array([MEAN]),
                 cov=jnp.array([[STD**2]]))


def _exact(t, s):
  """The ODE's map on Gaussian data: the standardized state does not change."""
  (m_t, std_t), (m_s, std_s) = (((1 - a) * MEAN, np.hypot((1 - a) * STD, a)) for a in (t, s))
  return m_s + (Z - m_t) * std_s / std_t


def test_a_solver_of_your_own_is_sampled_with_its_order(x64):
  errors = []
  for n in (20, 40):
    found = samplers.sample(_ralston(LINEAR, outputs.u), _predict(), Z, np.linspace(0.98, 0.02, n + 1))
    errors.append(abs(found - _exact(0.98, 0.02)).max())
  assert errors[1] < 1e-2 and 3.5 < errors[0] / errors[1] < 4.5, f'second order, but errors {errors}'


def test_a_solver_of_your_own_inverts_a_sample(x64):
  solver, grid = _ralston(LINEAR, outputs.u), np.linspace(0.02, 0.98, 201)
  noise = samplers.sample(solver, _predict(), Z, grid)
  np.testing.assert_allclose(noise, _exact(0.02, 0.98), atol=1e-3)
  np.testing.assert_allclose(samplers.sample(solver, _predict(), noise, grid[::-1]), Z, atol=1e-3)


@pytest.mark.parametrize('process,output,grid,message', [
    (LINEAR, outputs.eps, [1.0, 0.5, 0.0], "'eps' is blind at t=1: start the grid at t<=0.999999"),
    (LINEAR, outputs.x, [0.9, 0.5, 1e-9], "'x' is blind at t=1e-09: end the grid at t>=1e-06"),
    (LINEAR, outputs.u, [0.9, 0.2, 0.5], 'fall from 0.9 to 0.2 and rise from 0.2 to 0.5'),
    (Partial(processes.variance_preserving, beta_min=0.1, beta_max=20.0), outputs.v, [0.0, 0.3, 0.6],
     "ralston needs the velocity of process 'variance_preserving', .* at t=0")])
def test_a_solver_of_your_own_rejects_the_grids_that_its_check_rejects(process, output, grid, message):
  def predict(z, t):
    raise AssertionError('traced')
  with pytest.raises(ValueError, match=message):
    samplers.sample(_ralston(process, output), predict, Z, np.array(grid))


@pytest.mark.parametrize('end', [0.0, 0.1])
def test_the_evaluations_of_a_solver_of_your_own_are_counted(end):
  calls, solver, grid = [], _ralston(LINEAR, outputs.u), grids.uniform(5, end=end)
  def predict(z, t):
    jax.debug.callback(lambda: calls.append(1))
    return z
  samplers.sample(solver, predict, jnp.ones((1, 1)), grid)
  jax.effects_barrier()
  assert samplers.evaluations(solver, grid) == len(calls)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_times_in_half_precision_are_promoted(dtype):
  times = jnp.append(jnp.linspace(1, 0.002, 21), 0).astype(dtype)
  z, seen = jnp.ones((1, 1), dtype), []
  def predict(z, t):
    seen.append((z.dtype, t.dtype))
    return z / 2
  solver = samplers.unipc(processes.cosine, outputs.v)
  found = samplers.sample(solver, predict, z.astype('float32'), times)
  exact = samplers.sample(solver, predict, z.astype('float32'), np.asarray(times, 'float32'))
  np.testing.assert_array_equal(found, exact)
  if dtype == 'bfloat16':
    np.testing.assert_allclose(found, 0.47511768, rtol=1e-6)
  assert samplers.sample(samplers.ddim(processes.cosine, outputs.v), predict, z, times).dtype == dtype
  assert {b for _, b in seen} == {jnp.dtype('float32')} and seen[-1][0] == dtype
  velocity = processes.rate(processes.cosine, times)
  np.testing.assert_array_equal(velocity.x, processes.rate(processes.cosine, times.astype('float32')).x)


def test_a_solver_of_your_own_that_asks_for_nothing_is_two_functions():
  own = Solver(samplers.no_state, lambda predict, z, state, t, s, keys: (
      z + (s - t) * predict(z, t), state))
  found = samplers.sample(own, lambda z, t: 2 * z, jnp.ones((2, 1)), np.array([1, 0]))
  np.testing.assert_allclose(found, -1.0)


def test_a_stochastic_solver_of_your_own_needs_keys_and_falling_times():
  own = _ralston(LINEAR, outputs.u)._replace(traits=Traits('ralston', stochastic=True))
  keys = jax.random.split(jax.random.key(0), 3)
  with pytest.raises(ValueError, match='ralston is stochastic: pass keys'):
    samplers.sample(own, _predict(), Z, np.array([0.9, 0.1]))
  with pytest.raises(ValueError, match='ralston is stochastic .* the times rise'):
    samplers.sample(own, _predict(), Z, np.array([0.1, 0.9]), keys)


@pytest.mark.parametrize('make,ahead', [
    (samplers.heun, True), (samplers.adaptive, True), (samplers.euler, False), (samplers.ddim, False),
    (lambda p, o: samplers.heun(p, o, along=outputs.displacement), True),
    (lambda p, o: samplers.edm(p, o, num_steps=2, churn=1.0), True),
    (lambda p, o: samplers.euler(p, o, along=outputs.displacement), False)])
def test_solvers_that_evaluate_at_s_reject_a_blind_last_time(make, ahead):
  # x is blind at 1e-9, where no network is evaluated unless the solver does so at s.
  solver, grid = make(LINEAR, outputs.x), np.array([0.9, 0.5, 1e-9])
  if ahead:
    with pytest.raises(ValueError, match="'x' is blind at t=1e-09: end the grid at t>=1e-06"):
      solver.check(grid)
  else:
    solver.check(grid)
  solver.check(np.array([0.9, 0.5, 0.0]))


@pytest.mark.parametrize('make', [
    samplers.unipc, samplers.adaptive, samplers.sde,
    lambda p, o: samplers.edm(p, o, num_steps=4, churn=1.0), *(
        pytest.param(make, marks=pytest.mark.long) for make in (
            samplers.ddim, samplers.heun, samplers.adams_bashforth, samplers.dpmpp_2m))])
def test_every_solver_is_an_argument_of_compiled_functions(make):
  keys, grid = jax.random.split(jax.random.key(0), 3), np.array([0.9, 0.7, 0.5, 0.3, 0.1])
  traces = []
  @jax.jit
  def end(solver, z):
    traces.append(solver.traits.name)
    return samplers.sample(solver, lambda z, t: z, z, grid, keys)
  process = lambda beta: Partial(processes.variance_preserving, beta_min=0.1, beta_max=beta)
  for beta in (20.0, 15.0):
    assert jnp.isfinite(end(make(process(beta), outputs.v), jnp.asarray(Z))).all()
  assert len(traces) == 1, f'compiled {len(traces)} times for two values of beta_max'


@pytest.mark.parametrize('times', [[1.0, float('nan'), 0.0], [1.0], [[1.0, 0.0]], [float('inf'), 0.0]],
                         ids=['nan', 'one', 'two axes', 'inf'])
def test_the_default_check_of_a_solver_needs_two_finite_times(times):
  with pytest.raises(ValueError, match='two or more finite times'):
    blind_spots.any_grid(times)
  blind_spots.any_grid([0.0, 1.0, 0.5])
