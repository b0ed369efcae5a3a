"""What a compiled step costs each device: bytes, FLOPs, communication, and the time of a step.

Sizes come from XLA's `memory_analysis`, the compiler's FLOPs from its `cost_analysis`. Both leave out
what devices exchange and how often loops run: those are read from the program's text.
"""

import math
import re
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree
import numpy as np

from eqflow.arrays import Number
from eqflow.planning import _collectives, _hlo
from eqflow.planning.chips import Chip
from eqflow.planning.topologies import Topology
from eqflow.training.train_state import TrainState

# How layouts write that an array lies in a TPU's own memory: it takes no HBM.
NEAR = {'tpu': 'S(1)'}
# XLA counts a pointer for each output array as output.
POINTER = {'cpu': 8, 'cuda': 8}


def state_bytes(state: TrainState) -> dict[str, int]:
  """Bytes of a state's parts on one device: parameters, optimizer, averages and the rest."""
  trees = dict(parameters=state.params, optimizer=state.opt_state, averages=state.emas)
  sizes = {name: sharded_bytes(tree) for name, tree in trees.items()}
  return sizes | dict(other=sharded_bytes(state) - sum(sizes.values()))


def sharded_bytes(tree: PyTree) -> int:
  """Bytes of a tree of shapes with shardings, on one device."""
  return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
             for leaf in jax.tree.leaves(tree))


def memory(program: jax.stages.Compiled, target: Topology, outputs: int) -> dict[str, Any]:
  """Bytes of a compiled program with so many output arrays, on one device, and whether they fit."""
  stats = program.memory_analysis()
  pointers = POINTER.get(target.platform, 0) * outputs
  sizes = dict(arguments=stats.argument_size_in_bytes, outputs=stats.output_size_in_bytes - pointers,
               aliased=stats.alias_size_in_bytes, activations=stats.temp_size_in_bytes,
               program=stats.generated_code_size_in_bytes + pointers)
  total = sum(sizes.values()) - 2 * sizes['aliased']
  available = target.chip.memory
  return dict(bytes=sizes | dict(total=total), fits=None if available is None else total <= available)


def out_of_memory(error: jax.errors.JaxRuntimeError, state: int) -> dict[str, Any]:
  """Bytes of a program that its compiler rejects since it does not fit, read from the error.

  `state` is the bytes of its training state. Raises the error where it says something else.
  """
  size = r'([\d.]+)([KMGT])'
  said = (re.search(rf'Used {size} of {size} hbm', str(error))
          or re.search(rf'required[^(]*\({size}\) exceeds available HBM \({size}\)', str(error)))
  if not said:
    raise error
  total, available = (float(said.group(i)) * 2 ** (10 * (1 + 'KMGT'.index(said.group(i + 1))))
                      for i in (1, 3))
  return dict(bytes=dict(total=round(total), activations=round(total) - state), fits=False,
              available=available)


def work(program: jax.stages.Compiled, flops: int, target: Topology, mesh: Mesh) -> dict[str, Any]:
  """FLOPs, memory traffic and communication of a step on one device, and the least time it takes.

  `flops` is the count of all devices together, by `flops.flops`. Chips without published numbers, such
  as CPUs, have no times.
  """
  module, count, chip = _hlo.parse(program.as_text()), len(target.devices), target.chip
  exchanges = _collectives.found(module, dict(mesh.shape))
  traffic = _hlo.traffic(module, NEAR.get(target.platform, ''))
  compiler = (program.cost_analysis() or {}).get('flops')
  found = dict(flops=dict(formula=flops / count, compiler=compiler), traffic=traffic,
               intensity=flops / count / traffic, collectives=_collectives.by_axis(exchanges))
  if not chip.flops:
    return found
  hosts = np.array([device.process_index for device in mesh.devices.flat])
  seconds = dict(compute=flops / count / chip.flops, memory=traffic / chip.bandwidth,
                 links=sum(one.times * link_seconds(one, chip, hosts) for one in exchanges))
  return found | dict(seconds=seconds | dict(step=max(seconds.values())))


def link_seconds(one: _collectives.Collective, chip: Chip, host_of: np.ndarray) -> float:
  """The least time of an exchange that runs within each host first and between hosts then.

  `host_of` is the host of each device of the mesh. All chips of a TPU slice are linked directly.
  """
  n = len(one.groups[0])
  hosts = max(len(np.unique(group)) for group in host_of[one.groups]) if chip.outside else 1
  within = n / hosts
  inside = _collectives.moved(one.kind, one.size, n if hosts == 1 else within) / chip.inside
  if hosts == 1:
    return inside
  # What the devices of a host have in common crosses once, a fraction of it through each device.
  crossing = one.size if one.kind in ('collective-permute', 'all-to-all') else one.size / within
  return max(inside, _collectives.moved(one.kind, crossing, hosts) / chip.outside)


def duration(num_examples: Number, batch: int, step_seconds: Number, devices: int) -> dict[str, Number]:
  """Speed and length of a training in which each step takes `step_seconds`."""
  speed = batch / step_seconds
  days = num_examples / speed / 86_400
  return dict(examples_per_second=speed, days=days, chip_days=days * devices)
