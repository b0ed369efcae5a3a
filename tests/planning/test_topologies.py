"""Names of topologies, and meshes of their devices."""

import jax
import numpy as np
import pytest

from eqflow.planning import topologies
from eqflow.training import sharding


@pytest.mark.parametrize('name,allowed', [
    ('v9:4x4', r"v9:4x4 .*'cpu', 'h100'.*v5e:4x4"),
    ('v5e', '--topology=v5e .*v5e:4x4'), ('v5e:4by4', 'v5e:4x4'), ('', 'v5e:4x4'),
    ('v5e:4x4x4', 'v5e has 2 sides .* 256 chips'),
    ('v5e:32x32', '256 chips'),
    ('v5p:4x4', 'v5p has 3 sides'),
    ('h100:8', 'h100:1x8x8'), ('cpu:2x4', 'cpu:8'),
    ('cpu:99', 'JAX_NUM_CPU_DEVICES=99')])
def test_unknown_topologies_are_rejected_with_an_example(name, allowed):
  assert len(jax.devices()) == 8, 'the number of CPU devices must be fixed already'
  with pytest.raises(ValueError, match=allowed):
    topologies.of(name)


@pytest.mark.parametrize('name', ['v5e:2x2', 'h100:1x1x4'])
def test_a_missing_compiler_is_named_with_its_extra(name, monkeypatch):
  monkeypatch.setattr(topologies, '_installed', lambda package: False)
  with pytest.raises(ValueError, match=r"pip install -e '\.\[aot\]'"):
    topologies.of(name)


@pytest.mark.needs('libtpu')
@pytest.mark.parametrize('name', ['v5e:4x4', 'v5p:4x4x4', 'v5p:2x2x2', 'v6e:4x4'])
@pytest.mark.parametrize('sizes', [dict(fsdp=2), dict(fsdp=8), dict(fsdp=2, tensor=2)], ids=str)
def test_every_slice_forms_a_mesh_of_any_shape(name, sizes):
  target = topologies.of(name)
  mesh = sharding.device_mesh(target.devices, **sizes)
  assert set(mesh.devices.flat) == set(np.ravel(target.devices))
  assert mesh.shape['fsdp'] == sizes['fsdp']
