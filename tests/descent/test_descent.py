"""Descents: the algorithms as their papers print them, and stopping sample by sample."""

import inspect
import re

import jax
from jax import numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import optax
import pytest

from eqflow import descent, outputs, processes, samplers

A = np.diag([1.0, 3.0])
Z = np.array([[1.0, -2.0], [0.5, 4.0], [0.0, 0.1]])


def _field(z, t):
  return z @ jnp.asarray(A, z.dtype) + jnp.sin(z)


def _numpy_field(z):
  return z @ A + np.sin(z)


def test_gradient_descent_is_its_recursion(x64):
  z = Z
  for _ in range(60):
    z = z - 0.05 * _numpy_field(z)
  found = descent.descend(descent.gradient_descent(0.05), _field, jnp.asarray(Z), num_steps=60)
  np.testing.assert_allclose(found, z, rtol=1e-12)


def test_nesterov_evaluates_ahead_and_steps_from_z(x64):
  z = previous = Z
  for _ in range(60):
    ahead = z + 0.35 * (z - previous)
    z, previous = z - 0.05 * _numpy_field(ahead), z
  found = descent.descend(descent.nesterov(0.05, 0.35), _field, jnp.asarray(Z), num_steps=60)
  np.testing.assert_allclose(found, z, rtol=1e-12)


@pytest.mark.parametrize('make', [optax.sgd, lambda r: optax.adam(r), lambda r: optax.chain(
    optax.clip_by_global_norm(1.0), optax.sgd(r, momentum=0.9))])
def test_an_optax_transform_has_a_state_per_sample(make):
  transform = make(0.05)
  found = descent.descend(descent.from_optax(transform), _field, jnp.asarray(Z, jnp.float32),
                          num_steps=20)
  for row, start in zip(found, Z):
    z = jnp.asarray(start, jnp.float32)
    state = transform.init(z)
    for _ in range(20):
      update, state = transform.update(_field(z[None], 0)[0], state, z)
      z = optax.apply_updates(z, update)
    np.testing.assert_allclose(row, z, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('transform,needs', [
    (optax.polyak_sgd(), "'value'"), (optax.lbfgs(), "'value'"),
    (optax.contrib.sophia(0.1), 'obj_fn')])
def test_optimizers_that_need_a_loss_are_rejected(transform, needs):
  with pytest.raises(ValueError, match=f'{needs}.*a field has no loss value'):
    descent.from_optax(transform)


def test_a_masked_optimizer_leaves_the_other_leaves():
  method = descent.from_optax(optax.masked(optax.sgd(0.5), {'x': True, 'y': False}))
  z = {'x': jnp.ones((2, 3)), 'y': jnp.ones((2, 1))}
  end = descent.descend(method, lambda z, t: jax.tree.map(jnp.zeros_like, z) | {'x': z['x']}, z,
                        num_steps=1)
  np.testing.assert_allclose(end['x'], 0.5)
  np.testing.assert_allclose(end['y'], 1.0)


def _restated(z, *, threshold, max_steps):
  """Gradient descent of one sample that stops at the first small slope, before its move."""
  for steps in range(1, max_steps + 1):
    slope = _numpy_field(z)
    norm = np.linalg.norm(slope)
    if norm < threshold:
      return z, steps, norm
    z = z - 0.05 * slope
  return z, max_steps, norm


def test_each_sample_stops_as_soon_as_its_slope_is_small(x64):
  found = descent.descend_until(descent.gradient_descent(0.05), _field, jnp.asarray(Z),
                                max_steps=200, threshold=0.5)
  for i, start in enumerate(Z):
    z, steps, norm = _restated(start, threshold=0.5, max_steps=200)
    np.testing.assert_allclose(found[0][i], z, rtol=1e-12)
    assert found[1][i] == steps, f'sample {i} took {found[1][i]} steps, not {steps}'
    np.testing.assert_allclose(found[2][i], norm, rtol=1e-12)
  assert len(set(np.asarray(found[1]))) == 3, 'the samples should differ in their steps'


def test_a_threshold_out_of_reach_stops_at_max_steps(x64):
  z, steps, norms = descent.descend_until(descent.gradient_descent(0.05), _field, jnp.asarray(Z),
                                          max_steps=7, threshold=1e-9)
  assert (steps == 7).all() and (norms >= 1e-9).all()
  np.testing.assert_allclose(z, descent.descend(descent.gradient_descent(0.05), _field,
                                                jnp.asarray(Z), num_steps=7), rtol=1e-12)


def test_a_slope_at_the_threshold_does_not_stop():
  _, steps, _ = descent.descend_until(descent.gradient_descent(0.0), lambda z, t: z,
                                      jnp.array([[3.0, 4.0]]), max_steps=5, threshold=5.0)
  assert steps[0] == 5


@pytest.mark.parametrize('method', [descent.gradient_descent(0.1), descent.nesterov(0.1, 0.3),
                                    descent.from_optax(optax.adam(0.1))])
def test_z_keeps_its_dtype_where_the_network_computes_in_bfloat16(method):
  field = lambda z, t: z.astype(jnp.bfloat16)
  z = descent.descend(method, field, jnp.asarray(Z, jnp.float32), num_steps=3)
  assert z.dtype == jnp.float32
  z, _, norms = descent.descend_until(method, field, jnp.asarray(Z, jnp.float32), max_steps=3,
                                      threshold=0.1)
  assert z.dtype == norms.dtype == jnp.float32


@pytest.mark.parametrize('method', [descent.gradient_descent(0.1), descent.nesterov(0.1, 0.3)])
def test_a_field_of_another_shape_is_rejected(method):
  with pytest.raises(ValueError, match=r'field returned \(3, 1\) for z \(3, 2\)'):
    descent.descend_until(method, lambda z, t: z[:, :1], jnp.asarray(Z), max_steps=3, threshold=0.1)


def test_a_solver_does_not_descend_and_a_descent_is_not_sampled():
  # Without the type checks of the tests, which would reject them first.
  descend, sample = map(inspect.unwrap, (descent.descend, samplers.sample))
  with pytest.raises(TypeError, match='heun is a Solver, .* samplers.sample'):
    descend(samplers.heun(processes.linear, outputs.u), _field, jnp.asarray(Z), num_steps=3)
  with pytest.raises(TypeError, match='gradient_descent is a Descent, .* descent.descend'):
    sample(descent.gradient_descent(0.05), _field, jnp.asarray(Z), np.zeros(9))


def _heavy_ball():
  """A user's own descent: z_{k+1} = z_k - 0.05 f(z_k) + 0.5 (z_k - z_{k-1})."""
  def step(field, z, state, keys):
    slope = field(z)
    ahead = z - 0.05 * slope + 0.5 * (z - state.inner)
    return ahead, descent.State(state.count + 1, slope, inner=z)

  init = lambda z: descent.at_start(z)._replace(inner=z)
  return descent.Descent(init, step, samplers.Traits('heavy_ball'))


def test_a_descent_of_your_own_is_a_few_lines(x64):
  z = previous = Z
  path = [Z]
  for _ in range(60):
    z, previous = z - 0.05 * _numpy_field(z) + 0.5 * (z - previous), z
    path.append(z)
  own, start = _heavy_ball(), jnp.asarray(Z)
  np.testing.assert_allclose(descent.descend(own, _field, start, num_steps=60), z, rtol=1e-12)
  np.testing.assert_allclose(descent.descend_path(own, _field, start, num_steps=60), path, rtol=1e-12)
  # It stops at the first small slope, as counted by the recursion above.
  small = [[np.linalg.norm(_numpy_field(z[i])) < 0.1 for z in path].index(True) for i in range(3)]
  ends, iterations, norms = descent.descend_until(own, _field, start, max_steps=60, threshold=0.1)
  np.testing.assert_array_equal(iterations, np.array(small) + 1)
  np.testing.assert_allclose(ends, [path[k][i] for i, k in enumerate(small)], rtol=1e-12)
  assert (norms < 0.1).all() and descent.evaluations(own, 7) == 7


def test_a_descent_of_your_own_is_named_in_errors():
  own = _heavy_ball()._replace(traits=samplers.Traits('heavy_ball', stochastic=True))
  with pytest.raises(ValueError, match='heavy_ball is stochastic: pass keys'):
    descent.descend(own, _field, jnp.asarray(Z), num_steps=3)


def test_the_path_starts_at_z_and_ends_at_the_descent():
  z, method = jnp.asarray(Z), descent.nesterov(0.05, 0.3)
  path = descent.descend_path(method, _field, z, num_steps=7)
  assert path.shape == (8, *z.shape)
  np.testing.assert_array_equal(path[0], z)
  np.testing.assert_allclose(path[-1], descent.descend(method, _field, z, num_steps=7), rtol=1e-6)


def test_nan_does_not_count_as_converged():
  field = lambda z, t: jnp.where(z > 3, jnp.nan, z)
  z, steps, norms = descent.descend_until(descent.gradient_descent(0.5), field,
                                          jnp.array([[4.0], [1.0]]), max_steps=20, threshold=0.1)
  assert steps[0] == 20 and jnp.isnan(norms[0])
  assert steps[1] < 20 and jnp.isfinite(z[1]).all(), 'one sample must not affect another'


def test_norms_are_over_all_leaves_and_ahead_for_nesterov(x64):
  z = {'a': jnp.ones((1, 2)), 'b': jnp.ones((1, 2, 1))}
  _, _, norms = descent.descend_until(descent.gradient_descent(0.1), lambda z, t: z, z,
                                      max_steps=1, threshold=0.0)
  np.testing.assert_allclose(norms, [2.0])
  _, _, norms = descent.descend_until(descent.nesterov(0.1, 0.5), lambda z, t: z,
                                      jnp.ones((1, 1)), max_steps=2, threshold=0.0)
  # z: 1, then 0.9; the second look-ahead is 0.9 + 0.5 (0.9 - 1) = 0.85.
  np.testing.assert_allclose(norms, [0.85], rtol=1e-12)


def test_a_sample_does_not_depend_on_the_batch():
  z = jnp.asarray(Z, jnp.float32)
  together = descent.descend_until(descent.nesterov(0.05, 0.3), _field, z, max_steps=99,
                                   threshold=0.3)
  alone = descent.descend_until(descent.nesterov(0.05, 0.3), _field, z[1:2], max_steps=99,
                                threshold=0.3)
  for a, b in zip(alone, together):
    np.testing.assert_allclose(a, b[1:2], rtol=1e-5)


def test_descent_is_differentiable_in_its_step_size(x64):
  def end(step):
    return descent.descend(descent.gradient_descent(step), lambda z, t: z, jnp.ones((1, 1)),
                           num_steps=10)[0, 0]
  np.testing.assert_allclose(jax.grad(end)(0.1), -10 * 0.9**9, rtol=1e-12)


@pytest.mark.parametrize('make,momentum', [
    (descent.gradient_descent, 0.0), (lambda size, **more: descent.nesterov(size, 0.3, **more), 0.3)])
def test_a_schedule_multiplies_the_step_size(make, momentum, x64):
  factor = lambda k: 0.5 * (1 + np.cos(np.pi * k / 40))
  z = previous = Z
  for k in range(60):
    slope = _numpy_field(z + momentum * (z - previous))
    z, previous = z - 0.05 * factor(min(k, 40)) * slope, z
  schedule = jax.tree_util.Partial(descent.cosine, num_steps=40)
  found = descent.descend(make(0.05, schedule=schedule), _field, jnp.asarray(Z), num_steps=60)
  np.testing.assert_allclose(found, z, rtol=1e-12)


@pytest.mark.parametrize('make', [descent.gradient_descent, descent.heun,
                                  lambda rate, **more: descent.nesterov(rate, 0.3, **more)])
def test_any_function_of_the_iteration_is_a_schedule(make, x64):
  found = descent.descend(make(1.0, schedule=lambda k: 0.1 / (1 + k)), _field, jnp.asarray(Z),
                          num_steps=9)
  harmonic = make(0.1, schedule=jax.tree_util.Partial(descent.harmonic, half=1))
  np.testing.assert_allclose(found, descent.descend(harmonic, _field, jnp.asarray(Z), num_steps=9),
                             rtol=1e-12)


def test_optax_schedules_count_the_same_iterations(x64):
  rate = optax.cosine_decay_schedule(0.05, 40)
  found = [descent.descend(method, _field, jnp.asarray(Z), num_steps=30) for method in (
      descent.gradient_descent(1.0, schedule=rate), descent.from_optax(optax.sgd(rate)))]
  np.testing.assert_allclose(*found, rtol=1e-12)


@pytest.mark.parametrize('make, rule', [(descent.gradient_descent, samplers.euler),
                                        (descent.heun, samplers.heun)])
def test_descents_are_solvers_of_the_gradient_flow(make, rule, x64):
  times = np.linspace(0.6, 0.1, 11)
  flow = samplers.sample(rule(processes.linear, outputs.u), _field, jnp.asarray(Z), times)
  found = descent.descend(make(0.05), _field, jnp.asarray(Z), num_steps=10)
  np.testing.assert_allclose(found, flow, rtol=1e-12)


def test_heun_evaluates_twice():
  assert descent.evaluations(descent.heun(0.1), 7) == 14
  assert descent.evaluations(descent.gradient_descent(0.1), 7) == 7


def test_langevin_has_the_variance_of_its_recursion():
  n, slope, eta, temperature = 20_000, 2.0, 0.2, 0.7
  z = descent.descend(descent.langevin(eta, temperature), lambda z, t: slope * z, jnp.zeros((n, 1)),
                      num_steps=40, keys=jax.random.split(jax.random.key(0), n))
  # z' = (1 - eta a) z + sqrt(2 eta T) noise, which tends to T/a as eta does to 0.
  variance = 2 * eta * temperature / (1 - (1 - eta * slope)**2)
  error = np.sqrt(2 / n) * variance
  assert abs(float(jnp.var(z)) - variance) < 4.5 * error, f'{jnp.var(z)} is not {variance}'
  assert abs(float(z.mean())) < 4.5 * np.sqrt(variance / n)


def test_langevin_at_temperature_0_is_gradient_descent_and_needs_keys(x64):
  cold = descent.langevin(0.05, 0.0)
  keys = jax.random.split(jax.random.key(0), 3)
  np.testing.assert_allclose(
      descent.descend(cold, _field, jnp.asarray(Z), num_steps=9, keys=keys),
      descent.descend(descent.gradient_descent(0.05), _field, jnp.asarray(Z), num_steps=9), rtol=1e-12)
  with pytest.raises(ValueError, match='langevin is stochastic: pass keys'):
    descent.descend(cold, _field, jnp.asarray(Z), num_steps=9)
  with pytest.raises(ValueError, match='temperature=-1'):
    descent.langevin(0.05, -1)


def _toward(z, t, condition):
  return z - condition[:, None]


STARTS = 3.0 * jax.random.normal(jax.random.key(2), (11, 4))
ENDS = jnp.arange(11.0)


@pytest.mark.parametrize('method', [
    descent.from_optax(optax.adam(0.2)), descent.langevin(0.1, 1e-4), *(
        pytest.param(method, marks=pytest.mark.long)
        for method in (descent.gradient_descent(0.1), descent.nesterov(0.1, 0.3)))])
def test_a_sample_does_not_depend_on_its_slot(method):
  keys = jax.random.split(jax.random.key(1), 11)
  given = dict(max_steps=60, threshold=0.4, keys=keys)
  together = descent.descend_until(method, lambda z, t: _toward(z, t, ENDS), STARTS, **given)
  assert len(set(np.asarray(together[1]))) > 3, 'the samples should differ in their steps'
  for slots in (1, 4, 50):
    found = descent.descend_refilled(method, _toward, STARTS, ENDS, slots=slots, **given)
    for name, a, b in zip(('sample', 'steps', 'norm'), found, together):
      np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5, err_msg=f'{name} with {slots} slots')


def test_a_free_slot_is_refilled_at_every_fourth_iteration():
  calls = []
  def counted(z, t, condition):
    jax.debug.callback(lambda: calls.append(len(z)))
    return _toward(z, t, condition)
  _, steps, _ = descent.descend_refilled(descent.gradient_descent(0.1), counted, STARTS, ENDS, slots=3,
                                         max_steps=60, threshold=0.4)
  jax.effects_barrier()
  # In order, each sample takes the first free slot; slots are refilled every fourth iteration.
  free = [0, 0, 0]
  for count in np.asarray(steps):
    free[int(np.argmin(free))] += -(-int(count) // 4) * 4
  assert set(calls) == {3} and len(calls) == max(free), (len(calls), free)


def test_stopping_sample_by_sample_needs_no_collectives():
  mesh = Mesh(np.asarray(jax.devices()[:8]), ('data',))
  place = lambda a: jax.device_put(a, NamedSharding(mesh, PartitionSpec('data')))
  z, ends = place(jnp.ones((16, 4))), place(jnp.arange(16.0))
  method = descent.gradient_descent(0.1)
  def stopped(z, ends):
    return descent.descend_until(method, lambda z, t: _toward(z, t, ends), z, max_steps=9,
                                 threshold=0.4)
  text = jax.jit(stopped).lower(z, ends).compile().as_text()
  found = re.findall(r'(all-gather|all-to-all|collective-permute)', text)
  assert not found, f'{len(found)} collectives: {set(found)}'


@pytest.mark.parametrize('slots', [2, *(pytest.param(slots, marks=pytest.mark.long)
                                        for slots in (1, len(STARTS)))])
def test_every_sample_may_have_a_threshold_of_its_own(slots):
  method, thresholds = descent.gradient_descent(0.1), jnp.linspace(2.0, 0.2, len(STARTS))
  found = descent.descend_refilled(method, _toward, STARTS, ENDS, slots=slots, max_steps=60,
                                   threshold=thresholds)
  assert len(set(np.asarray(found[1]).tolist())) > 2, 'every sample took the same number of iterations'
  for i, threshold in enumerate(np.asarray(thresholds)):
    alone = descent.descend_refilled(method, _toward, STARTS[i:i + 1], ENDS[i:i + 1], slots=1,
                                     max_steps=60, threshold=threshold)
    np.testing.assert_array_equal(alone[1][0], found[1][i])
    for a, b in zip(alone, found):
      np.testing.assert_allclose(a[0], b[i], rtol=1e-5)


@pytest.mark.parametrize('given, message', [
    (dict(max_steps=0), 'max_steps=0: '),
    (dict(threshold=float('nan')), 'threshold=nan'),
    (dict(threshold=jnp.full(2, 0.4)), r'threshold has shape \(2,\): .* each of 3')])
def test_zero_steps_and_thresholds_that_are_nan_or_too_few_are_rejected(given, message):
  with pytest.raises(ValueError, match=message):
    descent.descend_until(descent.gradient_descent(0.1), _field,
                          **dict(z=jnp.asarray(Z), max_steps=6, threshold=0.4) | given)


def test_a_negative_number_of_steps_is_rejected():
  with pytest.raises(ValueError, match='num_steps=-3: '):
    descent.descend(descent.gradient_descent(0.1), _field, jnp.asarray(Z), num_steps=-3)


@pytest.mark.parametrize('ends', [ENDS[:-1], jnp.concatenate([ENDS, ENDS]), jnp.zeros(())],
                         ids=['fewer', 'more', 'none'])
@pytest.mark.parametrize('slots', [2, len(STARTS)])
def test_every_sample_needs_its_own_condition(ends, slots):
  with pytest.raises(ValueError, match=f'condition has a leaf .* {len(STARTS)} examples'):
    descent.descend_refilled(descent.gradient_descent(0.1), _toward, STARTS, ends, slots=slots,
                             max_steps=6, threshold=0.4)


@pytest.mark.parametrize('numbers', [(-0.1, 1.0), (0.0, 1.0), (0.1, -1.0), (0.1, np.array([1, -1]))])
def test_langevin_rejects_numbers_out_of_range(numbers):
  with pytest.raises(ValueError, match='=.* of langevin: '):
    descent.langevin(*numbers)


def test_zero_slots_are_rejected():
  with pytest.raises(ValueError, match='slots=0'):
    descent.descend_refilled(descent.gradient_descent(0.1), _toward, STARTS, ENDS, slots=0,
                             max_steps=6, threshold=0.4)


@pytest.mark.parametrize('run', [
    lambda *given: descent.descend(*given, num_steps=2),
    lambda *given: descent.descend_until(*given, max_steps=2, threshold=0.1)])
def test_a_descent_whose_init_returns_no_state_is_rejected(run):
  own = descent.Descent(lambda z: (), lambda field, z, state, keys: (z, state))
  with pytest.raises(TypeError, match='tuple.*descent.State'):
    run(own, _field, jnp.ones((3, 2)))
