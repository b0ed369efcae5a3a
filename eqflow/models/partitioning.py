"""How arrays are sharded over a mesh with the axes data, fsdp and tensor.

Examples are sharded over data and fsdp, parameters over fsdp and tensor: a device keeps its shard and
gathers the others when a layer needs them. The table RULES of a network has pairs of a pattern, which
matches the end of a parameter's path, and a PartitionSpec. Parameters that match no pattern are
replicated.
"""

from collections.abc import Iterable, Mapping, Sequence
import math

import jax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float

DATA, FSDP, TENSOR = AXES = 'data', 'fsdp', 'tensor'
EXAMPLES = DATA, FSDP


def fitted(spec: Iterable, shape: Sequence[int],
           sizes: Mapping[str, int]) -> tuple[PartitionSpec, list[str]]:
  """(spec', lost): the spec for an array of this shape on a mesh of these axis sizes.

  Mesh axes of size 1 are left out. A mesh axis that does not divide its dimension moves to the largest
  unsharded dimension that it divides. If no dimension fits, the array is not sharded over this mesh
  axis, and its name is in `lost`.
  """
  places = [[] for _ in shape]
  homeless, lost = [], []
  for place, length, names in zip(places, shape, spec):
    for name in () if names is None else (names,) if isinstance(names, str) else names:
      if sizes[name] == 1:
        continue
      shards = math.prod(sizes[other] for other in (*place, name))
      (place if length % shards == 0 else homeless).append(name)
  for name in homeless:
    whole = [i for i, place in enumerate(places) if not place and shape[i] % sizes[name] == 0]
    if whole:
      places[max(whole, key=lambda i: shape[i])].append(name)
    else:
      lost.append(name)
  entries = [tuple(place) if len(place) > 1 else place[0] if place else None for place in places]
  while entries and entries[-1] is None:
    entries.pop()
  return PartitionSpec(*entries), lost


def constrain(x: Float[Array, '...'], *spec: str | Sequence[str] | None) -> Float[Array, '...']:
  """x with the sharding `spec` if a mesh is set while x is traced; x itself otherwise.

  Without this constraint the compiler may shard activations like parameters and exchange them in
  every layer.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.axis_names != AXES or set(mesh.axis_types) != {AxisType.Auto}:
    return x
  return jax.lax.with_sharding_constraint(x, fitted(spec, x.shape, dict(mesh.shape))[0])
