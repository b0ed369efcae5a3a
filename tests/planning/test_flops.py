"""FLOPs against counts by hand and against the compiler's."""

import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec
import pytest

from eqflow.planning import flops
from eqflow.training.sharding import device_mesh


def floats(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def convolved(**options):
  return lambda x, w: jax.lax.conv_general_dilated(
      x, w, **options, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


@pytest.mark.parametrize('function,args,expected', [
    (jnp.matmul, (floats(3, 4), floats(4, 5)), 2 * 3 * 4 * 5),
    (jnp.matmul, (floats(7, 3, 4), floats(7, 4, 5)), 7 * 2 * 3 * 4 * 5),
    (lambda a, b: jax.lax.scan(lambda c, _: (c @ b, None), a, length=7)[0],
     (floats(3, 4), floats(4, 4)), 7 * 2 * 3 * 4 * 4),
    (lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b @ b, lambda: a @ b),
     (floats(3, 4), floats(4, 4)), 2 * 2 * 3 * 4 * 4),
    (jax.jit(lambda a, b: jax.nn.silu(a) @ b), (floats(3, 4), floats(4, 5)), 2 * 3 * 4 * 5),
    # The backward pass of sin(a b) computes a b again, and one product for each gradient.
    (jax.grad(jax.checkpoint(lambda a, b: jnp.sin(a @ b).sum()), (0, 1)),
     (floats(3, 4), floats(4, 5)), 4 * 2 * 3 * 4 * 5),
    # A kernel of 3 on 5 places padded by 1 meets 3 of them thrice, both ends twice.
    (convolved(window_strides=(1, 1), padding='SAME'), (floats(2, 5, 5, 3), floats(3, 3, 3, 8)),
     2 * 2 * 8 * 3 * 13**2),
    # Stride 2 on 6 places, padded only at the end, meets 0 1 2, 2 3 4, 4 5.
    (convolved(window_strides=(2, 2), padding='SAME'), (floats(2, 6, 6, 3), floats(3, 3, 3, 8)),
     2 * 2 * 8 * 3 * 8**2),
    (convolved(window_strides=(1, 1), padding='VALID', feature_group_count=4),
     (floats(2, 5, 5, 4), floats(3, 3, 1, 8)), 2 * 2 * 8 * 3**2 * 3**2),
], ids=['dot', 'batched', 'scan', 'cond', 'jit', 'remat', 'padded', 'strided', 'grouped'])
def test_flops_equal_the_count_by_hand(function, args, expected):
  assert flops.flops(function, *args) == expected


@pytest.mark.parametrize('options', [
    dict(window_strides=(2, 2), padding='SAME'), dict(window_strides=(1, 1), padding='SAME'),
    dict(window_strides=(1, 1), padding='VALID', rhs_dilation=(2, 2)),
    dict(window_strides=(2, 2), padding='SAME', feature_group_count=2),
    dict(window_strides=(1, 1), padding=((2, 1), (1, 2)), lhs_dilation=(2, 2))], ids=str)
def test_each_gradient_of_a_convolution_costs_as_much_as_the_convolution(options):
  groups = options.get('feature_group_count', 1)
  f, args = convolved(**options), (floats(2, 9, 9, 4), floats(3, 3, 4 // groups, 8))
  one = flops.flops(f, *args)
  assert one == jax.jit(f).lower(*args).compile().cost_analysis()['flops']
  for i in (0, 1):
    gradient = jax.grad(lambda *args: f(*args).sum(), i)
    assert flops.flops(gradient, *args) == 2 * one, f'the gradient of argument {i}'


def test_work_repeated_on_every_device_counts_once_per_device():
  mesh = device_mesh(data=4, fsdp=2)
  spec = PartitionSpec('data')
  f = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec)
  # Sharded over data, repeated over fsdp.
  assert flops.flops(f, floats(8, 4), floats(4, 5)) == 2 * (2 * 8 * 4 * 5)
