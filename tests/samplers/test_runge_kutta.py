"""Adaptive Runge-Kutta: the error follows the tolerance, and samples are independent."""

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np
import pytest
from scipy import optimize, stats

from eqflow import fields, oracles, outputs, processes, samplers
from tests import rows

LINEAR = processes.linear
MEANS, STDS, WEIGHTS = np.array([[-1.2], [0.9]]), np.array([0.35, 0.5]), np.array([0.4, 0.6])


def _mixture(process, output):
  return Partial(oracles.mixture, process=process, output=output, means=MEANS, stds=STDS,
                 weights=WEIGHTS)


def _gaussian(process, output, mean=0.7, std=0.4):
  return Partial(oracles.gaussian, process=process, output=output, mean=jnp.array([mean]),
                 cov=jnp.array([[std**2]]))


def _distribution(process, t, z):
  """The distribution function of the mixture's state at t."""
  alpha, sigma = (float(c) for c in process(jnp.asarray(t)))
  return sum(w * stats.norm.cdf(z, alpha * m, np.hypot(alpha * s, sigma))
             for w, m, s in zip(WEIGHTS, MEANS[:, 0], STDS))


def _transported(process, z, t, s):
  """z integrated from t to s exactly: in one dimension the ODE preserves the mass below z."""
  return np.array([[optimize.brentq(
      lambda a: _distribution(process, s, a) - _distribution(process, t, b), -400, 400, xtol=1e-14)]
                   for b in np.asarray(z)[:, 0]])


@pytest.mark.parametrize('name,output,start,end', [
    ('edm', 'eps', 0.01, 40.0),
    *(pytest.param(*row, marks=pytest.mark.long) for row in [
        ('linear', 'u', 1.0, 0.01), ('cosine', 'x', 1.0, 0.01), ('edm', 'edm', 40.0, 0.01),
        ('variance_preserving', 'eps', 1.0, 0.01), ('linear', 'v', 0.01, 1.0)])])
def test_the_error_follows_the_tolerance(name, output, start, end, x64):
  process, out = rows.PROCESSES[name], rows.OUTPUTS[output]
  z = jnp.linspace(-2, 2, 15)[:, None] * np.hypot(*process(start))
  exact = _transported(process, z, start, end)
  tolerances, errors, predict = 10.0 ** -np.arange(6, 12), [], _mixture(process, out)
  for tolerance in tolerances:
    make = samplers.adaptive(process, out, rtol=tolerance, atol=tolerance)
    found = samplers.sample(make, predict, z, [start, end])
    errors.append(np.sqrt(np.mean((found - exact) ** 2)) / abs(exact).max())
  assert (np.diff(errors) < 0).all(), f'errors {errors}'
  assert errors[-1] < 1e-9, f'errors {errors}'
  slope = np.polyfit(np.log(tolerances), np.log(errors), 1)[0]
  assert 0.8 < slope < 1.2, f'error ~ tolerance^{slope:.2f}, errors {errors}'


@pytest.mark.parametrize('grid', [
    [1.0, 0.0], pytest.param([1.0, 0.7, 0.2, 0.0], marks=pytest.mark.long)])
def test_one_pair_of_times_is_enough(grid, x64):
  # On Gaussian data the map from noise to data is mean + std z.
  z = jnp.array([[-1.0], [0.3], [2.0]])
  make = samplers.adaptive(LINEAR, outputs.u, rtol=1e-9, atol=1e-9, last=1e-5)
  found = samplers.sample(make, _gaussian(LINEAR, outputs.u), z, grid)
  np.testing.assert_allclose(found, 0.7 + 0.4 * z, atol=1e-8)


def test_float32_reaches_its_default_tolerance():
  z = jnp.array([[-1.0], [0.3], [2.0]])
  found = samplers.sample(samplers.adaptive(LINEAR, outputs.x), _gaussian(LINEAR, outputs.x), z,
                          [1.0, 0.0])
  np.testing.assert_allclose(found, 0.7 + 0.4 * z, atol=2e-4)


def _counting(calls):
  def predict(z, t):
    jax.debug.callback(lambda t: calls.append(np.asarray(t)), t)
    return jnp.sin(3 * z) + t[:, None]
  return predict


def test_each_sample_has_its_own_steps_and_the_state_counts_its_evaluations(x64):
  z, calls = jnp.array([[0.1], [0.9], [30.0]]), []
  make, predict = samplers.adaptive(LINEAR, outputs.u, rtol=1e-4), _counting(calls)

  def run(z, grid):
    calls.clear()
    end, state = samplers.run(make, predict, z, grid)
    jax.effects_barrier()
    assert min(t.min() for t in calls) > 0
    return np.asarray(samplers.evaluations(make, grid, state)), len(calls), np.asarray(end)

  for grid in ([1.0, 0.6, 0.0], [1.0, 0.6, 0.1]):
    alone = [run(z[i:i + 1], grid) for i in range(3)]
    assert all(count[0] == made for count, made, _ in alone)
    # Together, each counts its own steps, and the network runs as often as the slowest needs.
    counts, made, ends = run(z, grid)
    np.testing.assert_array_equal(counts, [count[0] for count, *_ in alone])
    np.testing.assert_allclose(ends, np.concatenate([end for *_, end in alone]), rtol=1e-6, atol=1e-7)
    assert len(set(counts.tolist())) > 1 and counts.max() <= made < counts.sum()
  # A time that repeats changes nothing and costs nothing.
  calls.clear()
  end, state = samplers.run(make, predict, z, [1.0, 1.0, 1.0])
  np.testing.assert_array_equal(end, z)
  assert not calls and not state.evaluations.any()
  with pytest.raises(ValueError, match='adaptive chooses its steps: call `run`'):
    samplers.evaluations(make, grid)


@pytest.mark.long
def test_a_sample_does_not_depend_on_the_others():
  condition = jnp.array([1.0, 5.0, 60.0])
  network = lambda z, t, c: -c[:, None] * jnp.sin(z) + t[:, None]
  z = jax.random.normal(jax.random.key(0), (3, 4))
  make = samplers.adaptive(LINEAR, outputs.u)
  ends, state = samplers.run(make, fields.bind(network, condition), z, [1.0, 0.0])
  assert len(set(state.evaluations.tolist())) == 3
  for i in range(3):
    alone = samplers.sample(make, fields.bind(network, condition[i:i + 1]), z[i:i + 1], [1.0, 0.0])
    np.testing.assert_allclose(ends[i:i + 1], alone, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('wide', [True, pytest.param(False, marks=pytest.mark.long)])
def test_leaves_of_any_dtype_are_integrated_in_float32_or_wider(wide, x64):
  shapes = {'bfloat16': (2, 3), 'float16': (2,), 'float32': (2, 1, 1), 'float64': (2, 3)}
  z = {name: jnp.full(shape, 0.5, name) for name, shape in shapes.items()}
  seen = []
  def predict(z, t):
    seen.append({name: a.dtype for name, a in z.items()})
    return z
  with jax.enable_x64(wide):
    given = z if wide else {name: a for name, a in z.items() if name != 'float64'}
    end, state = samplers.run(samplers.adaptive(LINEAR, outputs.u), predict, given, [1.0, 0.5])
  for name, a in end.items():
    assert a.dtype == name and all(dtypes[name] == name for dtypes in seen)
    # dz/dt = z; the network receives z rounded, the sum of the steps is not rounded.
    bound = max(1e-5, float(jnp.finfo(name).eps))
    np.testing.assert_allclose(np.float64(a), 0.5 * np.exp(-0.5), rtol=bound, err_msg=name)
  # Rounding of the network's input makes steps shorter, but not endlessly so.
  assert state.evaluations.max() < 300


@pytest.mark.long
def test_float32_under_x64_is_float32():
  z = jnp.array([[-1.0], [0.3]])
  with jax.enable_x64(True):
    end = samplers.sample(samplers.adaptive(LINEAR, outputs.x), _gaussian(LINEAR, outputs.x), z,
                          [1.0, 0.0])
  assert end.dtype == jnp.float32
  np.testing.assert_allclose(end, 0.7 + 0.4 * z, atol=2e-4)


def test_failure_is_nan_for_the_sample_that_fails():
  z = jnp.array([[0.5], [2.0]])
  few = samplers.adaptive(LINEAR, outputs.u, max_steps=20)
  stiff = lambda z, t: jnp.where(z > 1, 1000 * jnp.cos(1000 * t[:, None]), z)
  end = samplers.sample(few, stiff, z, [1.0, 0.1])
  assert jnp.isfinite(end[0, 0]) and jnp.isnan(end[1, 0])
  # A field of NaN fails as soon as its steps vanish, long before max_steps.
  broken, state = samplers.run(samplers.adaptive(LINEAR, outputs.u),
                              lambda z, t: jnp.where(z > 1, jnp.nan, z), z, [1.0, 0.1])
  assert jnp.isfinite(broken[0, 0]) and jnp.isnan(broken[1, 0]) and state.evaluations[1] < 200


def test_new_tolerances_do_not_recompile():
  traces = []
  def predict(z, t):
    traces.append(1)
    return z
  run = lambda tolerance: samplers.sample(
      samplers.adaptive(LINEAR, outputs.u, rtol=tolerance, atol=tolerance, last=tolerance), predict,
      jnp.ones((2, 2)), [1.0, 0.0])
  run(1e-3)
  first = len(traces)
  run(1e-4)
  assert len(traces) == first


def test_the_solver_is_forward_differentiable(x64):
  # The map from noise 0 is the mean itself.
  end = lambda mean: samplers.sample(
      samplers.adaptive(LINEAR, outputs.u, rtol=1e-8, atol=1e-8, last=1e-5),
      Partial(oracles.gaussian, process=LINEAR, output=outputs.u, mean=mean[None], cov=jnp.eye(1)),
      jnp.zeros((1, 1)), [1.0, 0.0]).sum()
  np.testing.assert_allclose(jax.jvp(end, (0.4,), (1.0,))[1], 1, atol=1e-4)


@pytest.mark.parametrize('last,message', [
    (0.0, 'last=0.0: '), (1e-9, "last=1e-09.*'x' is blind at t=1e-09: end the grid at t>=1e-06")])
def test_a_blind_last_time_is_rejected(last, message):
  with pytest.raises(ValueError, match=message):
    samplers.adaptive(LINEAR, outputs.x, last=last)


def test_an_output_that_is_blind_at_the_start_is_rejected():
  with pytest.raises(ValueError, match="'eps' is blind at t=1:"):
    samplers.sample(samplers.adaptive(LINEAR, outputs.eps), _counting([]), jnp.ones((1, 1)),
                    [1.0, 0.0])
