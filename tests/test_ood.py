"""OOD scores: line integrals of gradients, and scores over classes."""

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np
import pytest

from eqflow import fields, guidance, ood

A = np.array([[2.0, 0.5], [0.5, 1.0]])
Z = np.array([[1.0, -2.0], [0.5, 4.0], [0.0, 0.1]])
CENTRES = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, -4.0]])


def _quadratic(z, t):
  return z @ jnp.asarray(A, z.dtype)


def _of_class(z, t, condition):
  return z - jnp.asarray(CENTRES, z.dtype)[condition]


def test_the_gradient_norm_is_the_norm_of_the_field(x64):
  found = ood.gradient_norm(_quadratic, jnp.asarray(Z))
  np.testing.assert_allclose(found, np.linalg.norm(Z @ A, axis=1), rtol=1e-14)


def _descended(z, step_size, num_steps, slope):
  for _ in range(num_steps):
    z = z - step_size * slope(z)
  return z


@pytest.mark.parametrize('step_size', [0.02, 0.5])
def test_the_drop_of_a_quadratic_energy_is_exact_at_any_step(x64, step_size):
  energy = lambda z: ((z @ A) * z).sum(1) / 2
  end = _descended(Z, step_size, 7, lambda z: z @ A)
  found = ood.descent_drop(_quadratic, jnp.asarray(Z), step_size=step_size, num_steps=7)
  np.testing.assert_allclose(found, energy(Z) - energy(end), rtol=1e-12)


def test_the_drop_of_any_energy_is_of_second_order_in_the_step(x64):
  # E = sum log cosh z, with gradient tanh.
  energy = lambda z: np.log(np.cosh(z)).sum(1)
  def error(step_size, num_steps):
    found = ood.descent_drop(lambda z, t: jnp.tanh(z), jnp.asarray(Z), step_size=step_size,
                                num_steps=num_steps)
    end = _descended(Z, step_size, num_steps, np.tanh)
    return np.abs(found - (energy(Z) - energy(end))).max()
  order = np.log2(error(0.2, 10) / error(0.1, 20))
  assert 1.8 < order < 2.2, f'halving the step divides the error by 2^{order:.2f}'


def test_the_drop_of_a_circular_field_is_zero(x64):
  turn = lambda z, t: z @ jnp.array([[0.0, 1.0], [-1.0, 0.0]])
  found = ood.descent_drop(turn, jnp.asarray(Z), step_size=0.1, num_steps=1)
  np.testing.assert_allclose(found, 0.1 * np.square(Z).sum(1), rtol=1e-12)


@pytest.mark.parametrize('numbers', [dict(step_size=0.0, num_steps=3), dict(step_size=0.1, num_steps=0),
                                     dict(step_size=float('nan'), num_steps=3)])
def test_a_descent_without_steps_is_rejected(numbers):
  with pytest.raises(ValueError, match='descent_drop: (step_size|num_steps)=(0|nan)'):
    ood.descent_drop(_quadratic, jnp.asarray(Z), **numbers)


def test_a_drop_has_the_dtype_of_its_input(x64):
  z = jnp.asarray(Z, jnp.float32)
  found = ood.descent_drop(_quadratic, z, step_size=np.float64(0.1), num_steps=3)
  assert found.dtype == jnp.float32


@pytest.mark.parametrize('energy', [lambda z, t: z.sum(), lambda z, t: z.sum(1, keepdims=True)])
def test_an_energy_is_one_number_for_each_example(energy):
  with pytest.raises(ValueError, match='energy .* has shape'):
    ood.energy_at(energy, jnp.asarray(Z, jnp.float32))


def test_a_negative_number_of_classes_is_rejected():
  with pytest.raises(ValueError, match='num_classes=-1'):
    ood.over_classes(ood.gradient_norm, lambda z, t, y: z, jnp.ones((2, 2)), num_classes=-1)


def test_integer_inputs_are_rejected():
  with pytest.raises(TypeError, match='z is uint8'):
    ood.gradient_norm(_quadratic, np.ones((2, 2), np.uint8))


def _distances(z):
  return np.linalg.norm(z[None] - CENTRES[:, None], axis=2)


def test_over_classes_scores_every_input_for_every_class(x64):
  found = ood.over_classes(ood.gradient_norm, _of_class, jnp.asarray(Z), num_classes=3)
  np.testing.assert_allclose(found, _distances(Z), rtol=1e-14)
  np.testing.assert_array_equal(found.argmin(0), _distances(Z).argmin(0))


def test_over_classes_takes_any_score_with_bound_numbers(x64):
  drop = Partial(ood.descent_drop, step_size=0.25, num_steps=4)
  found = ood.over_classes(drop, _of_class, jnp.asarray(Z), num_classes=3)
  # |z|^2/2 falls by (1 - 0.25)^2 a step.
  np.testing.assert_allclose(found, _distances(Z)**2 / 2 * (1 - 0.75**8), rtol=1e-12)
  energy = lambda z, t, y: jnp.square(_of_class(z, t, y)).sum(1) / 2
  found = ood.over_classes(ood.energy_at, energy, jnp.asarray(Z), num_classes=3)
  np.testing.assert_allclose(found, _distances(Z)**2 / 2, rtol=1e-12)


def test_without_classes_there_is_one_row(x64):
  blind = lambda z, t, condition: z if condition is None else z / 0
  found = ood.over_classes(ood.gradient_norm, blind, jnp.asarray(Z), num_classes=0)
  np.testing.assert_allclose(found, np.linalg.norm(Z, axis=1)[None], rtol=1e-14)


def test_classes_share_one_trace_and_examples_are_independent():
  traced = []
  def network(z, t, condition):
    traced.append(z.shape)
    return _of_class(z, t, condition)
  found = ood.over_classes(ood.gradient_norm, network, jnp.asarray(Z, jnp.float32), num_classes=3)
  assert len(traced) <= 2, f'{len(traced)} traces for one loop over 3 classes'
  alone = [ood.over_classes(ood.gradient_norm, _of_class, z[None].astype(np.float32),
                               num_classes=3)[:, 0] for z in Z]
  np.testing.assert_allclose(found, np.stack(alone, 1), rtol=1e-6)


def test_scores_of_a_network_in_low_precision_are_in_single_precision():
  low = lambda z, t: _quadratic(z, t).astype(jnp.bfloat16)
  found = ood.descent_drop(low, Z.astype(np.float32), step_size=0.1, num_steps=3)
  assert found.dtype == jnp.float32
  exact = ood.descent_drop(_quadratic, Z.astype(np.float32), step_size=0.1, num_steps=3)
  np.testing.assert_allclose(found, exact, rtol=0.02)


def test_a_score_is_differentiable_under_jit(x64):
  norm = lambda z: ood.gradient_norm(_quadratic, z).sum()
  found = jax.jit(jax.grad(norm))(jnp.asarray(Z))
  want = Z @ A @ A / np.linalg.norm(Z @ A, axis=1, keepdims=True)
  np.testing.assert_allclose(found, want, rtol=1e-12)


def test_added_fields_meet_at_the_weighted_mean_of_their_centres(x64):
  z, t = jnp.asarray(Z), jnp.zeros(3)
  predicts = [fields.bind(_of_class, jnp.full(3, y)) for y in range(3)]
  weights = np.array([[0.5, 1.0, 0.0], [0.25, 1.0, 2.0], [0.25, 0.0, -1.0]])
  found = guidance.added(predicts, [jnp.asarray(w) for w in weights])(z, t)
  # sum_i w_i (z - c_i): a weight of its own for each example.
  want = weights.sum(0)[:, np.newaxis] * Z - weights.T @ CENTRES
  np.testing.assert_allclose(found, want, rtol=1e-12, atol=1e-12)
  alike = guidance.composed(predicts[0], predicts[1:], [0.25, 0.75])(z, t)
  np.testing.assert_allclose(guidance.added(predicts[1:], [0.25, 0.75])(z, t), alike, rtol=1e-12)


def test_added_fields_need_one_scale_each():
  with pytest.raises(ValueError, match='1 scales for 2 predictors'):
    guidance.added([_quadratic, _quadratic], [1.0])
