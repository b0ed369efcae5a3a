"""One-step solvers: orders, equalities, distributions, and the grids that they reject."""

import functools

import chex
import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np
import pytest

from eqflow import arrays, descent, grids, oracles, outputs, processes, samplers
from eqflow.mix import Mix
from tests import rows
from tests.laws.solvers import field

MEAN, STD = 0.7, 0.4
COSINE, LINEAR = processes.cosine, processes.linear


def _gaussian(process, output):
  return Partial(oracles.gaussian, process=process, output=output, mean=jnp.array([MEAN]),
                 cov=jnp.array([[STD**2]]))


def exact(process, z, t, s):
  """The ODE's map on Gaussian data: the standardized state does not change."""
  def moments(t):
    alpha, sigma = map(float, process(jnp.asarray(t)))
    return alpha * MEAN, np.hypot(alpha * STD, sigma)
  (m_t, s_t), (m_s, s_s) = moments(t), moments(s)
  return m_s + (z - m_t) * s_s / s_t


@pytest.mark.parametrize('solver,least', [('ddim', 0.95), ('euler', 0.95), ('heun', 1.9)])
@pytest.mark.parametrize('name,output', [
    ('cosine', 'x'), ('edm', 'edm'),
    *(pytest.param(*row, marks=pytest.mark.long) for row in [('linear', 'u'), ('cosine', 'v')])])
def test_order_of_convergence(solver, least, name, output, x64):
  process, out = rows.PROCESSES[name], rows.OUTPUTS[output]
  start, end = (20.0, 0.02) if name == 'edm' else (0.98, 0.02)
  z, steps = np.array([[-1.0], [0.3], [2.0]]), np.array([32, 64, 128, 256])
  # Its check of the grid would compile for each number of steps.
  make = getattr(samplers, solver)(process, out)._replace(check=None)
  errors = []
  for n in steps:
    grid = np.geomspace(start, end, n + 1) if name == 'edm' else np.linspace(start, end, n + 1)
    # Repeated at the start, where a step of length zero does nothing: one compilation serves all.
    grid = np.concatenate([np.full(steps[-1] - n, start), grid])
    found = samplers.sample(make, _gaussian(process, out), z, grid)
    errors.append(abs(np.asarray(found) - exact(process, z, start, end)).max())
  order = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
  assert order >= least, f'{solver} on {name} with {output}: order {order:.2f}, errors {errors}'


def affine(process, output, t, s):
  """(A, c, b) with z_s = A z_t + c + b noise, read off the ancestral step itself."""
  step = samplers.ancestral(process, output).step
  keys = jax.random.split(jax.random.key(0), 4)
  z = jnp.array([[0.0], [1.0], [0.0], [0.0]])
  keys = keys[jnp.array([0, 0, 1, 2])]
  predict = _gaussian(process, output)
  found, _ = step(lambda z, t: predict(z, jnp.full(4, t)), z, (), t, s, keys)
  noise = arrays.noise_like(keys, z)
  b = (found[2] - found[3]) / (noise[2] - noise[3])
  return (found[1] - found[0])[0], (found[0] - b * noise[0])[0], b[0]


@pytest.mark.parametrize('name', ['linear', 'cosine'])
def test_the_bias_of_ancestral_falls_with_the_number_of_steps(name, x64):
  process = rows.PROCESSES[name]
  coefficients = jax.jit(jax.vmap(lambda t, s: jnp.stack(affine(process, outputs.v, t, s))))
  steps, bias = np.array([128, 256, 512]), []
  ends = [np.concatenate([np.linspace(1, 0, n + 1)[part] for n in steps])
          for part in (slice(-1), slice(1, None))]
  for each in np.split(np.asarray(coefficients(*ends)), np.cumsum(steps)[:-1]):
    mean, variance = 0.0, 1.0
    for a, c, b in each:
      mean, variance = a * mean + c, a * a * variance + b * b
    bias.append([abs(mean - MEAN), abs(variance - STD**2)])
  for what, errors in zip(('mean', 'variance'), np.asarray(bias).T):
    if errors.max() < 1e-13:
      continue  # Exact: no error is left that could fall.
    order = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert order >= 0.9, f'{name}: the {what} converges with order {order:.2f}, errors {errors}'
  assert errors[-1] < 0.01 and errors.max() > 1e-13, f'{name}: variance off by {errors}'


def _doubled(name, t, s):
  """The d at which sigma/alpha is r_s^2/r_t: twice the step's way in log-SNR."""
  if name == 'linear':
    ratio = (s / (1 - s)) ** 2 * (1 - t) / t
    return ratio / (1 + ratio)
  half = np.pi / 2
  return np.arctan(np.tan(half * s) ** 2 / np.tan(half * t)) / half


def ancestral_against_ddim(name, steps):
  """DDPM's steps against DDIM's to d and noise forward to s, over the largest entry."""
  process, out = rows.PROCESSES[name], outputs.v
  z = jax.random.normal(jax.random.key(0), (64, 3))
  keys = jax.random.split(jax.random.key(5), 64)
  grid = np.linspace(0.98, 0.96, 2) if steps == 1 else np.linspace(0.98, 0.02, 51)
  found, other = samplers.sample(samplers.ancestral(process, out), field, z, grid, keys), z
  ddim, predict = jax.jit(samplers.ddim(process, out).step, static_argnums=0), _broadcast(field)
  noise = jax.jit(lambda i: arrays.noise_like(arrays.fold_number(keys, i), z))
  for i, (t, s) in enumerate(zip(grid, grid[1:])):
    d = _doubled(name, t, s)
    jump, _ = ddim(predict, other, (), t, d, None)
    (a_d, s_d), (a_s, s_s) = (map(float, process(jnp.float64(at))) for at in (d, s))
    kept = s_d / a_d * a_s
    # s_s^2 - kept^2 as a product, which does not cancel where the step is short.
    fresh = np.sqrt((s_s - kept) * (s_s + kept)) * noise(i)
    other = a_s / a_d * jump + fresh
  return float(abs(found - other).max() / abs(other).max())


def _broadcast(predict):
  return lambda z, t: predict(z, jnp.full(len(z), t))


@pytest.mark.parametrize('steps,bound', [(1, 2e-15), (50, 1e-13)])
@pytest.mark.parametrize('name', ['linear', 'cosine'])
def test_ancestral_is_ddim_over_twice_the_log_snr_then_forward_noise(name, steps, bound, x64):
  error = ancestral_against_ddim(name, steps)
  assert error <= bound, f'{name}: after {steps} steps they differ by {error:.2e}'


@pytest.mark.parametrize('steps,bound', [(1, 2e-15), (50, 1e-13)])
def test_euler_on_the_linear_process_is_ddim(steps, bound, x64):
  z = jax.random.normal(jax.random.key(0), (64, 3))
  grid = np.linspace(1, 1 - 1 / 50, 2) if steps == 1 else np.linspace(1, 0, 51)
  ends = [samplers.sample(make(LINEAR, outputs.u), field, z, grid)
          for make in (samplers.ddim, samplers.euler)]
  error = float(abs(ends[0] - ends[1]).max() / abs(ends[0]).max())
  assert error <= bound, f'after {steps} steps they differ by {error:.2e}'


def scale(t):
  return 0.5 + t + jnp.sin(3 * t)


@pytest.mark.parametrize('steps,bound', [(1, 2e-15), (50, 1e-13)])
@pytest.mark.parametrize('output', ['x', 'eps'])
def test_ddim_does_not_depend_on_the_scale_of_the_process(steps, bound, output, x64):
  out, c = rows.OUTPUTS[output], scale
  stretched = Partial(processes.scaled, process=COSINE, scale=Partial(c))
  z = jax.random.normal(jax.random.key(0), (64, 3))
  grid = np.linspace(0.98, 0.96, 2) if steps == 1 else np.linspace(0.98, 0, 51)
  plain = samplers.sample(samplers.ddim(COSINE, out), field, z, grid)
  unscaled = lambda z, t: field(z / c(t)[:, None], t)
  other = samplers.sample(samplers.ddim(stretched, out), unscaled, c(grid[0]) * z, grid)
  error = float(abs(other / c(grid[-1]) - plain).max() / abs(plain).max())
  assert error <= bound, f'after {steps} steps they differ by {error:.2e}'


def test_heun_on_edm_is_algorithm_1_of_its_paper(x64):
  # Algorithm 1 of 2206.00364 with sigma(t) = t, s(t) = 1, restated.
  def denoiser(z, sigma):
    return MEAN + STD**2 / (STD**2 + sigma**2) * (z - MEAN)
  grid = grids.karras(18)
  z = x = np.array([[60.0], [-100.0]])
  for t, s in zip(grid[:-1], grid[1:]):
    d = (x - denoiser(x, t)) / t
    ahead = x + (s - t) * d
    if s > 0:
      ahead = x + (s - t) * (d / 2 + (ahead - denoiser(ahead, s)) / s / 2)
    x = ahead
  found = samplers.sample(samplers.heun(processes.edm, outputs.x),
                          _gaussian(processes.edm, outputs.x), jnp.asarray(z), grid)
  np.testing.assert_allclose(found, x, rtol=1e-10)


def test_the_path_starts_at_z_and_ends_at_the_sample():
  z, grid = jnp.ones((2, 1)), grids.uniform(5)
  given = samplers.ddim(LINEAR, outputs.u), _gaussian(LINEAR, outputs.u), z, grid
  path = samplers.sample_path(*given)
  assert path.shape == (6, 2, 1)
  np.testing.assert_array_equal(path[0], z)
  np.testing.assert_allclose(path[-1], samplers.sample(*given), rtol=1e-6)


def test_a_sample_depends_only_on_its_own_key():
  keys = jax.random.split(jax.random.key(1), 8)
  z = jax.random.normal(jax.random.key(2), (8, 1))
  run = lambda z, keys: samplers.sample(samplers.ancestral(LINEAR, outputs.u),
                                        _gaussian(LINEAR, outputs.u), z, grids.uniform(10), keys)
  np.testing.assert_allclose(run(z, keys)[3:5], run(z[3:5], keys[3:5]), rtol=1e-5)


def test_each_step_has_fresh_noise():
  # With x = 0, the state after each step is fresh noise plus what is left of the old noise.
  keys = jax.random.split(jax.random.key(1), 2_000)
  z = jnp.zeros((2_000, 1))
  path = samplers.sample_path(samplers.ancestral(LINEAR, outputs.x), lambda z, t: 0 * z, z,
                              np.array([1.0, 0.9, 0.8]), keys)
  kept = 0.8 * 0.1 / (0.2 * 0.9) * 0.8 / 0.9
  fresh = path[2] - kept * path[1]
  together = float(jnp.corrcoef(path[1][:, 0], fresh[:, 0])[0, 1])
  assert abs(together) < 0.1, f'the noise of two steps is correlated: {together:.2f}'


@pytest.mark.long
def test_a_repeated_time_changes_nothing_at_either_end():
  z, keys = jax.random.normal(jax.random.key(0), (4, 1)), jax.random.split(jax.random.key(1), 4)
  for make in (samplers.ancestral, samplers.ddim, samplers.euler, samplers.heun):
    end = samplers.sample(make(LINEAR, outputs.u), _gaussian(LINEAR, outputs.u), z,
                          np.array([1.0, 1.0, 1.0]), keys)
    np.testing.assert_allclose(end, z, rtol=1e-6, err_msg=make.__name__)
  grid = np.array([0.5, 0.0, 0.0])
  end = samplers.sample(samplers.ancestral(LINEAR, outputs.u), _gaussian(LINEAR, outputs.u), z, grid,
                        keys)
  assert jnp.isfinite(end).all()


def test_plain_functions_work_as_process_and_output():
  process = functools.partial(lambda t, a: Mix(1 - t, a * t), a=1.0)
  solver, z = samplers.ddim(process, lambda process, t: outputs.u(process, t)), jnp.ones((2, 1))
  found = samplers.sample(solver, field, z, np.array([1, 0]))
  np.testing.assert_allclose(found, z - field(z, jnp.ones(2)), rtol=1e-6)
  assert samplers.sample(solver, field, z, grids.uniform(4)).shape == (2, 1)


def test_trees_are_sampled_leaf_by_leaf():
  z = {'a': jnp.ones((2, 3)), 'b': jnp.ones((2, 1, 1))}
  end = samplers.sample(samplers.heun(LINEAR, outputs.u), lambda z, t: z, z, grids.uniform(4))
  np.testing.assert_allclose(end['b'], end['a'][:, :1, None], rtol=1e-6)


def test_new_numbers_of_the_same_shapes_do_not_recompile():
  process = lambda b: Partial(processes.variance_preserving, beta_min=0.1, beta_max=b)
  traces = []
  def predict(z, t):
    traces.append(1)
    return z
  for n in (20.0, 15.0):
    samplers.sample(samplers.ddim(process(n), outputs.v), predict, jnp.ones((2, 2)),
                    grids.uniform(4, start=0.9))
  assert len(traces) <= 2, f'traced {len(traces)} times for two values of beta_max'


def test_sampling_is_differentiable():
  def end(mean):
    predict = Partial(oracles.gaussian, process=LINEAR, output=outputs.u, mean=mean,
                      cov=jnp.eye(1))
    return samplers.sample(samplers.ddim(LINEAR, outputs.u), predict, jnp.zeros((1, 1)),
                           grids.uniform(64)).sum()
  # The map from noise 0 is the mean itself, up to the solver's first order.
  chex.assert_trees_all_close(jax.grad(end)(jnp.array([0.4])), jnp.ones(1), atol=0.1)


def test_a_blind_output_is_rejected_before_compiling():
  def predict(z, t):
    raise AssertionError('traced')
  with pytest.raises(ValueError, match="'eps' is blind at t=1:"):
    samplers.sample(samplers.ddim(LINEAR, outputs.eps), predict, jnp.ones((2, 2)),
                    grids.uniform(4))


NEED_VELOCITY = [samplers.euler, samplers.heun, samplers.adams_bashforth, samplers.adaptive,
                 samplers.sde]


# An SDE does not rise.
@pytest.mark.parametrize('make', [make for make in NEED_VELOCITY if make is not samplers.sde])
@pytest.mark.parametrize('output', ['v', 'eps'])
def test_a_grid_that_starts_where_the_velocity_is_infinite_is_rejected(make, output):
  process, out = rows.PROCESSES['variance_preserving'], rows.OUTPUTS[output]
  grid = [0.0, 0.3, 0.6]
  with pytest.raises(ValueError, match=f"{make.__name__} .*'variance_preserving'.* t=0: begin"):
    make(process, out).check(np.array(grid))
  # Accepted: a last step to data, DDIM, a step along a vector, a process of finite velocity.
  make(process, out).check(np.array([0.6, 0.3, 0.0]))
  samplers.ddim(process, out).check(np.array([0.0, 0.3, 0.6]))
  samplers.heun(process, out, along=outputs.displacement).check(np.array([0.0, 0.3, 0.6]))
  make(COSINE, out).check(np.array(grid))


@pytest.mark.parametrize('make', NEED_VELOCITY)
def test_a_step_to_data_does_not_need_the_velocity_there(make):
  process = rows.PROCESSES['variance_preserving']
  end = samplers.sample(make(process, outputs.v), _gaussian(process, outputs.v), jnp.ones((2, 1)),
                        np.array([0.6, 0.3, 0.0]), jax.random.split(jax.random.key(0), 2))
  assert jnp.isfinite(end).all()


def test_a_stochastic_solver_needs_keys():
  with pytest.raises(ValueError, match='ancestral is stochastic: pass keys'):
    samplers.sample(samplers.ancestral(LINEAR, outputs.u), field, jnp.ones((2, 2)),
                    grids.uniform(4))


def test_a_prediction_of_another_shape_is_rejected():
  with pytest.raises(ValueError, match=r'predict returned \(2, 1\) for z \(2, 2\)'):
    samplers.sample(samplers.ddim(LINEAR, outputs.u), lambda z, t: z[:, :1], jnp.ones((2, 2)),
                    grids.uniform(4))


def test_a_step_of_gradient_descent_is_a_step_in_time(x64):
  # On the linear process, z - step c (eps - x) is the state at t - step c.
  x, eps, t, step = jnp.array([[2.0]]), jnp.array([[-1.0]]), 0.3, 0.01
  c = 4.0
  z = (1 - t) * x + t * eps
  method = descent.gradient_descent(step)
  moved, _ = method.step(lambda z: c * (eps - x), z, method.init(z), None)
  np.testing.assert_allclose(moved, (1 - t + step * c) * x + (t - step * c) * eps, rtol=1e-14)
