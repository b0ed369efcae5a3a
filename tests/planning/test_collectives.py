"""Collectives of small compiled programs, and the ways in which XLA writes their groups."""

import jax
from jax import numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import pytest

from eqflow.planning import _collectives, _hlo
from eqflow.training.sharding import device_mesh


def exchanged(function, mesh, *args, out):
  """The collectives of function(*args): each arg is (shape, spec), `out` the spec of the result."""
  place = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))
  given = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place(*spec)) for shape, spec in args]
  text = jax.jit(function, out_shardings=place(*out)).lower(*given).compile().as_text()
  return _collectives.found(_hlo.parse(text), dict(mesh.shape))


def loss(w, x):
  return jnp.tanh(x @ w).sum()


def test_a_gradient_is_reduced_over_the_data_axis():
  found = exchanged(jax.grad(loss), device_mesh(data=8), ((32, 16), ()), ((64, 32), ('data',)), out=())
  [one] = found
  assert (one.kind, one.size, one.axes, one.times) == ('all-reduce', 4 * 32 * 16, ('data',), 1)
  assert _collectives.by_axis(found) == {'data': dict(
      count=1, bytes=2048, moved=2 * 2048 * 7 / 8, kinds={'all-reduce': 2048})}


def test_a_sharded_parameter_is_gathered_along_fsdp_only():
  found = exchanged(lambda w, x: jnp.tanh(x @ w), device_mesh(data=4, fsdp=2), ((32, 16), ('fsdp',)),
                    ((4096, 32), ('data',)), out=('data',))
  gathers = [one for one in found if one.kind == 'all-gather']
  assert [(one.size, one.axes) for one in gathers] == [(4 * 32 * 16, ('fsdp',))]
  assert sorted(map(sorted, gathers[0].groups.tolist())) == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_collectives_in_a_loop_count_every_iteration():
  def descended(w, x):
    return jax.lax.scan(lambda w, x: (w - jax.grad(loss)(w, x), None), w, x)[0]
  found = exchanged(descended, device_mesh(data=8), ((32, 16), ()), ((5, 64, 32), (None, 'data')),
                    out=())
  assert sum(one.times * one.size for one in found if one.kind == 'all-reduce') == 5 * 4 * 32 * 16


LINE = '  %a = f32[64]{0} all-reduce(%p), replica_groups=GROUPS, use_global_device_ids=true'


@pytest.mark.parametrize('written,groups', [
    ('{{0,2,4,6},{1,3,5,7}}', [[0, 2, 4, 6], [1, 3, 5, 7]]),
    ('{}', [list(range(8))]),
    ('[4,2]<=[8]', [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ('[2,4]<=[4,2]T(1,0)', [[0, 2, 4, 6], [1, 3, 5, 7]]),
    ("mesh['a'=4,'b'=2] {'b'}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ("mesh['a'=4,'b'=2] {'a'}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
    ("mesh['a'=2,'b'=1,'c'=4], device_ids=([4,2]T(1,0)) {'a'}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ("mesh['a'=8] {'a':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
])
def test_groups_are_parsed_from_every_notation(written, groups):
  text = '\n'.join(('ENTRY %main (p: f32[64]) -> f32[64] {', '  %p = f32[64]{0} parameter(0)',
                    LINE.replace('GROUPS', written), '}'))
  [one] = _collectives.found(_hlo.parse(text), dict(data=4, fsdp=2, tensor=1))
  assert sorted(map(sorted, one.groups.tolist())) == groups
  assert one.size == 256
