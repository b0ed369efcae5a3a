"""How arrays are cut over a mesh with the axes data, fsdp and tensor, where there is one.

Examples are cut over data and fsdp, parameters over fsdp and tensor: a device of the fsdp axis keeps a
part of them, and gathers the rest where a layer needs it. A network names its cuts in a table RULES,
pairs of a pattern for the end of a parameter's path and a PartitionSpec; what no pattern names is
whole on every device.
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
  """(spec', lost): the spec for an array of that shape on a mesh of these sizes.

  An axis of size 1 is left out. One that does not divide its dimension goes to the largest whole one
  that it divides; where there is none the array is not cut along it, and it is among the lost.
  """
  places = [[] for _ in shape]
  homeless, lost = [], []
  for place, length, names in zip(places, shape, spec):
    for name in () if names is None else (names,) if isinstance(names, str) else names:
      if sizes[name] == 1:
        continue
      cut = math.prod(sizes[other] for other in (*place, name))
      (place if length % cut == 0 else homeless).append(name)
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
  """x, cut so where a mesh is set while a step is traced, and as it is elsewhere.

  Left to itself, the compiler may cut activations as the parameters are, and exchange them in every
  layer.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.axis_names != AXES or set(mesh.axis_types) != {AxisType.Auto}:
    return x
  return jax.lax.with_sharding_constraint(x, fitted(spec, x.shape, dict(mesh.shape))[0])
