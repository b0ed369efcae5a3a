"""--mode=plan: what a config needs of devices that need not be there, before they are paid for."""

from collections.abc import Callable
import json
import math
import pathlib
import re
import time
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from eqflow.arrays import Number
from eqflow.config import consistency, recipes
from eqflow.planning import chips, collectives, flops, hlo, report, topologies
from eqflow.runs import blueprint, run
from eqflow.training import sharding

# Kernels that are chosen by trying them on a device are not chosen where there is none.
OPTIONS = {'cuda': {'xla_gpu_enable_triton_gemm': False, 'xla_gpu_autotune_level': 0}}
# Where a TPU's program lies in the chip's own memory, and so takes none of the other.
NEAR = {'tpu': 'S(1)'}
# Bytes that are counted as output beside each array: where it lies, in XLA's table of them.
POINTER = {'cpu': 8, 'cuda': 8}


def plan(config: ConfigDict, topology: str, workdir: pathlib.Path | None = None, *,
         levers: bool = True, say: Callable = print) -> dict[str, Any]:
  """Compiles the train step of config for a topology, and prints what it needs; plan.json in workdir.

  No data and no device of that kind are needed. Where the step does not fit, each way to make it fit
  is tried, if `levers`. Raises ValueError for a topology that is none, a compiler that is missing or
  a config that cannot run on so many devices.
  """
  target = topologies.of(topology)
  if workdir:
    # What cannot be written is refused before minutes of compiling.
    workdir.mkdir(parents=True, exist_ok=True)
  found = compiled(config, target)
  say(report.text(found), flush=True)
  _write(found, workdir)
  if found['fits'] is False and levers:
    found['levers'] = tried(config, target, found, say)
    _write(found, workdir)
  return found


def _write(found, workdir):
  if workdir:
    (workdir / 'plan.json').write_text(json.dumps(found, indent=2) + '\n')


def compiled(config: ConfigDict, target: topologies.Topology) -> dict[str, Any]:
  """What the step of config needs of each device of target, as `report.text` tells it."""
  recipe, mesh = recipes.recipe(config), run.mesh_of(config, target.devices)
  consistency.check_training(config, recipe.model, recipe.averages, mesh)
  # A training asks it of the samples that evaluation will draw.
  step, given = blueprint.step_and_shapes(config, recipe, mesh)
  found = dict(
      topology=target.name, devices=len(target.devices), mesh=dict(mesh.shape),
      batch=config.train.batch, accumulate=config.train.accumulate,
      remat=bool(config.model.get('remat')), examples=config.train.num_examples,
      state=state_bytes(given[0]),
      undivided=undivided(given[0].params, recipe.model.rules, mesh), chip=target.chip._asdict())
  traced = step.trace(*given)
  asked = flops.of_jaxpr(traced.jaxpr.jaxpr)
  start, work_start = time.perf_counter(), time.process_time()
  try:
    program = traced.lower(lowering_platforms=(target.platform,)).compile(
        compiler_options=OPTIONS.get(target.platform))
  except jax.errors.JaxRuntimeError as error:
    return found | _refused(error, asked, found)
  # On a machine that others share, the first says little.
  found |= dict(compile_seconds=time.perf_counter() - start,
                compile_cpu_seconds=time.process_time() - work_start)
  pointers = POINTER.get(target.platform, 0) * len(jax.tree.leaves(traced.out_info))
  return found | memory(program, pointers, target.chip.memory) | work(
      program, asked, target, mesh, config)


def undivided(params: Any, rules: sharding.Rules, mesh: Mesh) -> dict[str, str]:
  """{path: axes} of parameters that an axis was to cut and does not divide, blocks alike as one."""
  lost = sharding.undivided(params, rules, mesh)
  return {re.sub(r'block_?\d+', 'block*', path): ', '.join(axes) for path, axes in lost.items()}


def state_bytes(state: Any) -> dict[str, int]:
  """Bytes on one device of a state's parts: parameters, optimizer, averages and the rest."""
  trees = dict(parameters=state.params, optimizer=state.opt_state, averages=state.emas)
  sizes = {name: sharded_bytes(tree) for name, tree in trees.items()}
  return sizes | dict(other=sharded_bytes(state) - sum(sizes.values()))


def sharded_bytes(tree: Any) -> int:
  """Bytes of a tree of shapes with shardings, on one device."""
  return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
             for leaf in jax.tree.leaves(tree))


def memory(program: Any, pointers: int, available: Number | None) -> dict[str, Any]:
  """Bytes of a compiled program on one device, and whether they fit; `pointers` are no outputs."""
  stats = program.memory_analysis()
  sizes = dict(arguments=stats.argument_size_in_bytes, outputs=stats.output_size_in_bytes - pointers,
               aliased=stats.alias_size_in_bytes, activations=stats.temp_size_in_bytes,
               program=stats.generated_code_size_in_bytes + pointers)
  total = (sizes['arguments'] + sizes['outputs'] - sizes['aliased'] + sizes['activations']
           + sizes['program'])
  fits = None if available is None else total <= available
  return dict(bytes=sizes | dict(total=total), fits=fits)


def _refused(error, asked, found):
  """What is known of a program that its compiler refuses since it does not fit."""
  size = r'([\d.]+)([KMGT])'
  said = (re.search(rf'Used {size} of {size} hbm', str(error))
          or re.search(rf'required[^(]*\({size}\) exceeds available HBM \({size}\)', str(error)))
  if not said:
    raise error
  used, there = (float(said.group(i)) * 2 ** (10 * (1 + 'KMGT'.index(said.group(i + 1))))
                 for i in (1, 3))
  total, count = round(used), found['devices']
  state = sum(found['state'].values())
  return dict(bytes=dict(total=total, activations=total - state), fits=False, available=there,
              flops=dict(formula=asked / count, compiler=None))


def work(program: Any, asked: int, target: topologies.Topology, mesh: Any,
         config: ConfigDict) -> dict[str, Any]:
  """FLOPs, traffic and exchanges of a compiled step, and the time that no step can be shorter than."""
  module, count = hlo.parse(program.as_text()), len(target.devices)
  cost = program.cost_analysis() or {}
  exchanges = collectives.found(module, dict(mesh.shape))
  traffic, chip = hlo.traffic(module, NEAR.get(target.platform, '')), target.chip
  made = dict(flops=dict(formula=asked / count, compiler=cost.get('flops')), traffic=traffic,
              intensity=asked / count / traffic, collectives=collectives.by_axis(exchanges))
  if not chip.flops:
    return made
  hosts = np.array([device.process_index for device in mesh.devices.flat])
  bounds = dict(compute=asked / count / chip.flops, memory=traffic / chip.bandwidth,
                links=sum(one.times * link_seconds(one, chip, hosts) for one in exchanges))
  step = max(bounds.values())
  speed = config.train.batch / step
  return made | dict(seconds=bounds | dict(step=step), examples_per_second=speed,
                     days=config.train.num_examples / speed / 86_400,
                     chip_days=config.train.num_examples / speed / 86_400 * count)


def link_seconds(one: collectives.Collective, chip: chips.Chip, host_of: np.ndarray) -> float:
  """The time that an exchange takes at least, done first within a host and then between hosts.

  `host_of` has the host of each device of the mesh; chips of a slice are wired together whatever it is.
  """
  n = len(one.groups[0])
  hosts = max(len(np.unique(group)) for group in host_of[one.groups]) if chip.outside else 1
  within = n / hosts
  inside = collectives.moved(one.kind, one.size, n if hosts == 1 else within) / chip.inside
  if hosts == 1:
    return inside
  # What the devices of a host have in common crosses once, each of them carrying a share of it.
  share = one.size if one.kind in ('collective-permute', 'all-to-all') else one.size / within
  return max(inside, collectives.moved(one.kind, share, hosts) / chip.outside)


def tried(config: ConfigDict, target: topologies.Topology, found: dict[str, Any],
          say: Callable) -> list[dict]:
  """Ways to make it fit: [{'lever', 'total', 'fits', 'how': 'compiled' or 'arithmetic'}]."""
  limit = found.get('available') or target.chip.memory
  rows, state, total = [], sum(found['state'].values()), found['bytes']['total']

  def add(lever, size, how):
    rows.append(dict(lever=lever, total=size, fits=size <= limit, how=how))
    say(report.lever(rows[-1], limit), flush=True)

  # What a state needs is exact without compiling; activations are taken to stay as they are.
  recipe = recipes.recipe(config)
  tensor = found['mesh']['tensor']
  for fsdp in _more(found['mesh']['fsdp'], len(target.devices) // tensor):
    changed = with_changes(config, mesh=dict(data=-1, fsdp=fsdp, tensor=tensor))
    mesh = run.mesh_of(changed, target.devices)
    size = sum(state_bytes(blueprint.first_state(changed, recipe, mesh, abstract=True)).values())
    if total - state + size <= limit or fsdp * tensor == len(target.devices):
      add(f'config.mesh.fsdp={fsdp}', total - state + size, 'arithmetic')
      break
  names = [*config.ema.decays, *config.ema.stds]
  for fewer in range(1, len(names) + 1):
    size = found['state']['averages'] // len(names) * fewer
    if total - size <= limit or fewer == len(names):
      add(f'{fewer} average(s) fewer in config.ema', total - size, 'arithmetic')
      break
  for lever, changes in _activation_levers(config, found):
    try:
      again = compiled(with_changes(config, **changes), target)
    except ValueError as error:
      # A lever may not be one for this config.
      say(f'  {lever}: {error}', flush=True)
      continue
    add(lever, again['bytes']['total'], 'compiled')
  return rows


def _more(now, most):
  """The sizes of an axis above `now` that `most` devices may be cut into."""
  return [n for n in range(now + 1, most + 1) if most % n == 0]


def _activation_levers(config, found):
  """What makes activations smaller: (its words, its changes of the config), the least first."""
  rows = config.train.batch // math.prod(found['mesh'][axis] for axis in ('data', 'fsdp'))
  # Dispersion is among the rows of a part: with other parts it is another loss.
  parts = [n for n in range(2, rows + 1) if rows % n == 0 and n > config.train.accumulate
           and not config.loss.dispersive]
  # A network that cannot has no such key.
  remat = {} if config.model.get('remat', True) else dict(model=dict(remat=True))
  if remat:
    yield 'config.model.remat=True', remat
  for n in dict.fromkeys([*parts[:1], *parts[-1:]]):
    yield f'config.train.accumulate={n}', dict(train=dict(accumulate=n))
  if remat and parts:
    yield (f'config.model.remat=True and config.train.accumulate={parts[-1]}',
           remat | dict(train=dict(accumulate=parts[-1])))


def with_changes(config: ConfigDict, **sections: dict) -> ConfigDict:
  """The config with other values in some of its sections."""
  changed = config.copy_and_resolve_references()
  with changed.unlocked():
    changed.update(ConfigDict(sections))
  return changed
