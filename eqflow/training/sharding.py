"""Shardings: one mesh over the devices of all processes, with the axes of `partitioning`."""

import collections
from collections.abc import Sequence
import re
from typing import Any

import jax
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree
import numpy as np

from eqflow.arrays import Number
from eqflow.models import partitioning

Rules = Sequence[tuple[str, PartitionSpec]]


def device_mesh(devices: Any = None, *, data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
  """A mesh of these sizes over `devices`, by default all; one size may be -1 and takes the rest.

  Raises ValueError unless the product of the sizes is the number of devices.
  """
  devices = np.asarray(jax.devices() if devices is None else devices)
  sizes = dict(data=data, fsdp=fsdp, tensor=tensor)
  known = int(np.prod([size for size in sizes.values() if size > 0]))
  whole = all(size > 0 or size == -1 for size in sizes.values())
  rest = [name for name, size in sizes.items() if size == -1]
  if rest and devices.size % known == 0:
    sizes[rest[0]], known = devices.size // known, devices.size
  if not whole or len(rest) > 1 or known != devices.size:
    raise ValueError(f'data={data}, fsdp={fsdp}, tensor={tensor} on {devices.size} device(s): give '
                     'sizes whose product is that number, one of them -1 for the rest')
  shape, row = tuple(sizes.values()), devices.reshape(-1)
  if row[0].platform == 'tpu':
    # Neighbours along an axis should be wired together; it may be part of an axis of the torus.
    placed = mesh_utils.create_device_mesh(shape, list(row), allow_split_physical_axes=True)
  else:
    placed = row.reshape(shape)   # By hosts: the last axes stay within one, where links are fast.
  return Mesh(placed, partitioning.AXES, axis_types=(AxisType.Auto,) * 3)


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device has the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
  """The leading axis is sharded over data and fsdp; devices along tensor have the same rows."""
  return NamedSharding(mesh, PartitionSpec(partitioning.EXAMPLES))


def parts(mesh: Mesh) -> int:
  """The number of shards of a batch."""
  return mesh.shape[partitioning.DATA] * mesh.shape[partitioning.FSDP]


def of(tree: PyTree, rules: Rules, mesh: Mesh) -> PyTree[NamedSharding]:
  """Each leaf's sharding: by the first rule with a pattern that ends its path, else replicated.

  Paths of moments and EMAs end like the paths of their parameters, so they are sharded alike.
  """
  place = lambda path, leaf: NamedSharding(mesh, _fitted(path, leaf, rules, mesh)[0])
  return jax.tree_util.tree_map_with_path(place, tree)


def undivided(tree: PyTree, rules: Rules, mesh: Mesh) -> dict[str, list[str]]:
  """{path of a leaf: mesh axes of its rule that divide none of its sizes}."""
  lost = {_name(path): _fitted(path, leaf, rules, mesh)[1]
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
  return {name: axes for name, axes in lost.items() if axes}


def _fitted(path, leaf, rules, mesh):
  name = _name(path)
  spec = next((spec for pattern, spec in rules if re.search(f'(^|/){pattern}$', name)), ())
  return partitioning.fitted(spec, leaf.shape, dict(mesh.shape))


def _name(path):
  return jax.tree_util.keystr(path, simple=True, separator='/')


def mesh_of(tree: PyTree) -> Mesh:
  """The mesh of sharded arrays; for others, a mesh of all devices along data."""
  places = (getattr(leaf, 'sharding', None) for leaf in jax.tree.leaves(tree))
  return next((place.mesh for place in places if isinstance(place, NamedSharding)
               and place.mesh.axis_names == partitioning.AXES), None) or device_mesh()


def own_rows(mesh: Mesh) -> tuple[int, int]:
  """(i, n): this process reads rows i::n of each batch; processes with the same rows have the same i.

  On a mesh without devices of this process, as in planning, i is 0. Raises ValueError if two processes
  would share a part of their rows.
  """
  where = np.arange(parts(mesh)).repeat(mesh.shape[partitioning.TENSOR]).reshape(mesh.devices.shape)
  held = {}
  for device, part in zip(mesh.devices.flat, where.flat):
    held.setdefault(device.process_index, set()).add(int(part))
  groups = sorted({tuple(sorted(rows)) for rows in held.values()})
  if sum(map(len, groups)) != parts(mesh) or len(set(map(len, groups))) > 1:
    # In planning, no device of the mesh may be here.
    most = max(collections.Counter(device.process_index for device in mesh.devices.flat).values())
    raise ValueError(f'a mesh of {dict(mesh.shape)} splits rows across processes of {most} '
                     'device(s): choose a config.mesh.tensor that divides this number, or is a '
                     'multiple of it')
  ours = held.get(jax.process_index())
  return groups.index(tuple(sorted(ours))) if ours else 0, len(groups)


def place_batch(batch: Any, mesh: Mesh) -> Any:
  """Global arrays over the mesh, made of the rows of each process, which `own_rows` numbers."""
  sharding = by_example(mesh)
  return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, a), batch)


def of_each(value: Number, mesh: Mesh) -> Any:
  """[devices], one entry on each device of the mesh; each process gives the `value` of its devices."""
  own = np.full(len(mesh.local_devices), value, np.float32)
  place = NamedSharding(mesh, PartitionSpec(partitioning.AXES))
  return jax.make_array_from_process_local_data(place, own, (mesh.size,))


def spread(tree: PyTree, mesh: Mesh) -> PyTree:
  """Shards by example arrays that every process has whole."""
  sharding = by_example(mesh)
  if jax.process_count() == 1:
    return jax.device_put(tree, sharding)
  return jax.tree.map(
      lambda a: jax.make_array_from_callback(np.shape(a), sharding, lambda at: a[at]), tree)


def fetch(a: Any) -> np.ndarray:
  """The whole array as numpy, on every process."""
  if getattr(a, 'is_fully_addressable', True):
    return np.asarray(a)
  return np.asarray(multihost_utils.process_allgather(a, tiled=True))


def check_rows(batch: int, mesh: Mesh) -> None:
  """Raises ValueError unless each device gets the same number of samples."""
  if batch < 1 or batch % parts(mesh):
    raise ValueError(f'batch={batch} is not divisible by {parts(mesh)} devices')
