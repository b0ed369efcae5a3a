"""Where arrays live: one mesh over all devices, of all processes, with the axes of `placement`."""

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
  """A mesh of these sizes over `devices`, or all there are; one size may be -1, the rest.

  Raises ValueError where the sizes do not make the number of devices.
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
    # Neighbours along an axis are to be wired together; some axes lie within one of the torus.
    placed = mesh_utils.create_device_mesh(shape, list(row), allow_split_physical_axes=True)
  else:
    placed = row.reshape(shape)   # By hosts: the last axes stay within one, where links are fast.
  return Mesh(placed, partitioning.AXES, axis_types=(AxisType.Auto,) * 3)


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
  """The leading axis is cut over data and fsdp; devices along tensor hold the same rows."""
  return NamedSharding(mesh, PartitionSpec(partitioning.EXAMPLES))


def parts(mesh: Mesh) -> int:
  """In how many parts a batch is cut."""
  return mesh.shape[partitioning.DATA] * mesh.shape[partitioning.FSDP]


def of(tree: PyTree, rules: Rules, mesh: Mesh) -> PyTree[NamedSharding]:
  """The sharding of every leaf: of the first rule whose pattern ends the leaf's path, else whole.

  An optimizer's moments and averages of parameters have paths that end as the parameters' do, and so
  are cut like them.
  """
  place = lambda path, leaf: NamedSharding(mesh, _fitted(path, leaf, rules, mesh)[0])
  return jax.tree_util.tree_map_with_path(place, tree)


def undivided(tree: PyTree, rules: Rules, mesh: Mesh) -> dict[str, list[str]]:
  """{path of a leaf: axes of the mesh that a rule cuts it along, and that divide none of its sizes}."""
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
  """The mesh that arrays are placed on; one of all devices along data where they are on none."""
  places = (getattr(leaf, 'sharding', None) for leaf in jax.tree.leaves(tree))
  return next((place.mesh for place in places if isinstance(place, NamedSharding)
               and place.mesh.axis_names == partitioning.AXES), None) or device_mesh()


def own_rows(mesh: Mesh) -> tuple[int, int]:
  """(i, n): this process reads rows i::n of each batch; those that share their rows have the same i.

  Of a mesh that this process has no part in, as where it is planned for, i is 0. Raises ValueError
  where some rows would be on some devices of one process and some of another.
  """
  where = np.arange(parts(mesh)).repeat(mesh.shape[partitioning.TENSOR]).reshape(mesh.devices.shape)
  held = {}
  for device, part in zip(mesh.devices.flat, where.flat):
    held.setdefault(device.process_index, set()).add(int(part))
  groups = sorted({tuple(sorted(rows)) for rows in held.values()})
  if sum(map(len, groups)) != parts(mesh) or len(set(map(len, groups))) > 1:
    # Of those that are planned for, none need be here.
    most = max(collections.Counter(device.process_index for device in mesh.devices.flat).values())
    raise ValueError(f'a mesh of {dict(mesh.shape)} cuts batches across processes of '
                     f'{most} device(s): choose config.mesh.tensor so that it '
                     'divides that number, or is a multiple of it')
  ours = held.get(jax.process_index())
  return groups.index(tuple(sorted(ours))) if ours else 0, len(groups)


def place_batch(batch: Any, mesh: Mesh) -> Any:
  """This process's rows, as `own_rows` counts them, as its part of global arrays over the mesh."""
  sharding = by_example(mesh)
  return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, a), batch)


def of_each(value: Number, mesh: Mesh) -> Any:
  """[devices] over the mesh, this process's all `value`: each device has its own, and none a copy."""
  own = np.full(len(mesh.local_devices), value, np.float32)
  place = NamedSharding(mesh, PartitionSpec(partitioning.AXES))
  return jax.make_array_from_process_local_data(place, own, (mesh.size,))


def spread(tree: PyTree, mesh: Mesh) -> PyTree:
  """Arrays that every process holds whole, cut by example."""
  sharding = by_example(mesh)
  if jax.process_count() == 1:
    return jax.device_put(tree, sharding)
  return jax.tree.map(
      lambda a: jax.make_array_from_callback(np.shape(a), sharding, lambda at: a[at]), tree)


def fetch(a: Any) -> np.ndarray:
  """The whole array on the host, of every process where devices of several hold it."""
  if getattr(a, 'is_fully_addressable', True):
    return np.asarray(a)
  return np.asarray(multihost_utils.process_allgather(a, tiled=True))


def check_rows(batch: int, mesh: Mesh) -> None:
  """Raises ValueError unless each device gets the same number of samples."""
  if batch < 1 or batch % parts(mesh):
    raise ValueError(f'config.sample.batch={batch} does not divide by {parts(mesh)} device(s): choose '
                     f'a multiple of {parts(mesh)}')


def check_tensor(rules: Rules, mesh: Mesh) -> None:
  """Raises ValueError where a mesh has more than one device along an axis that no rule cuts along."""
  cut = {axis for _, spec in rules for axes in spec if axes for axis in np.atleast_1d(axes)}
  if mesh.shape[partitioning.TENSOR] > 1 and partitioning.TENSOR not in cut:
    raise ValueError(f'config.mesh.tensor={mesh.shape[partitioning.TENSOR]}: no layer of this network '
                     'is '
                     'cut, and all these devices would compute the same; set it to 1')


def check_divides(batch: int, accumulate: int, mesh: Mesh) -> None:
  """Raises ValueError unless each device gets the same number of rows of each microbatch."""
  share = accumulate * parts(mesh)
  if batch < 1 or accumulate < 1 or batch % share:
    raise ValueError(
        f'config.train.batch={batch} does not divide by {parts(mesh)} device(s) x '
        f'config.train.accumulate={accumulate}: choose a multiple of {max(share, 1)}')
