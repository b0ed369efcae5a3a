"""--mode=plan: what a config needs of devices that need not exist here, before anyone pays for them."""

from collections.abc import Callable
import json
import math
import pathlib
import re
import time
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from eqflow import files
from eqflow.config import consistency, recipes
from eqflow.planning import costs, flops, report, topologies
from eqflow.runs import blueprint, run
from eqflow.training import sharding

# Kernels that XLA chooses by timing them on a device cannot be chosen without one.
OPTIONS = {'cuda': {'xla_gpu_enable_triton_gemm': False, 'xla_gpu_autotune_level': 0}}


def plan(config: ConfigDict, workdir: pathlib.Path | None = None, *, topology: str,
         levers: bool = True, say: Callable = print) -> dict[str, Any]:
  """Compiles the train step of config for a topology and prints what it needs; plan.json in workdir.

  Reads no data and needs no device of that kind. Where the step does not fit and `levers` is set,
  compiles each change of the config that may make it fit. Raises ValueError for an unknown topology,
  a missing compiler, or a config that cannot run on so many devices.
  """
  target = topologies.of(topology)
  if workdir:
    # Fails here rather than after minutes of compiling.
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
    files.write_text(workdir / 'plan.json', json.dumps(found, indent=2) + '\n')


def compiled(config: ConfigDict, target: topologies.Topology) -> dict[str, Any]:
  """What the step of config needs of each device of target; `report.text` prints it."""
  recipe, mesh = recipes.recipe(config), run.mesh_of(config, target.devices)
  consistency.check_training(config, recipe.model, recipe.averages, mesh)
  step, arguments = blueprint.step_and_shapes(config, recipe, mesh)
  state, section = arguments[0], config.train
  found = dict(
      topology=target.name, devices=len(target.devices), mesh=dict(mesh.shape), batch=section.batch,
      accumulate=section.accumulate, remat=bool(config.model.get('remat')),
      examples=section.num_examples, state=costs.state_bytes(state),
      undivided=undivided(state.params, recipe.model.rules, mesh), chip=target.chip._asdict())
  traced = step.trace(*arguments)
  formula = flops.of_jaxpr(traced.jaxpr.jaxpr)
  start, cpu_start = time.perf_counter(), time.process_time()
  try:
    program = traced.lower(lowering_platforms=(target.platform,)).compile(
        compiler_options=OPTIONS.get(target.platform))
  except jax.errors.JaxRuntimeError as error:
    return found | costs.out_of_memory(error, sum(found['state'].values())) | dict(
        flops=dict(formula=formula / len(target.devices), compiler=None))
  # On a shared machine wall time alone says little.
  found |= dict(compile_seconds=time.perf_counter() - start,
                compile_cpu_seconds=time.process_time() - cpu_start)
  found |= costs.memory(program, target, len(jax.tree.leaves(traced.out_info)))
  found |= costs.work(program, formula, target, mesh)
  if 'seconds' in found:
    found |= costs.duration(section.num_examples, section.batch, found['seconds']['step'],
                            len(target.devices))
  return found


def undivided(params: PyTree, rules: sharding.Rules, mesh: Mesh) -> dict[str, str]:
  """{path: axes} of parameters that an axis should shard but does not divide; all blocks in one row."""
  lost = sharding.undivided(params, rules, mesh)
  return {re.sub(r'block_?\d+', 'block*', path): ', '.join(axes) for path, axes in lost.items()}


def tried(config: ConfigDict, target: topologies.Topology, found: dict[str, Any],
          say: Callable) -> list[dict]:
  """Changes that may make it fit: [{'lever', 'total', 'fits', 'how': 'compiled' or 'arithmetic'}]."""
  limit = found.get('available') or target.chip.memory
  rows, state, total = [], sum(found['state'].values()), found['bytes']['total']

  def add(lever, size, how):
    rows.append(dict(lever=lever, total=size, fits=size <= limit, how=how))
    say(report.lever(rows[-1], limit), flush=True)

  # The bytes of a state are exact without compiling; activations are assumed to stay the same.
  recipe = recipes.recipe(config)
  tensor = found['mesh']['tensor']
  for fsdp in _more(found['mesh']['fsdp'], len(target.devices) // tensor):
    changed = with_changes(config, mesh=dict(data=-1, fsdp=fsdp, tensor=tensor))
    mesh = run.mesh_of(changed, target.devices)
    size = sum(costs.state_bytes(blueprint.first_state(changed, recipe, mesh, abstract=True)).values())
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
      # Not every config allows every lever.
      say(f'  {lever}: {error}', flush=True)
      continue
    add(lever, again['bytes']['total'], 'compiled')
  return rows


def _more(now, most):
  """The sizes above `now` that an axis of `most` devices may have."""
  return [n for n in range(now + 1, most + 1) if most % n == 0]


def _activation_levers(config, found):
  """(name, changes of the config) of what makes activations smaller, the smallest change first."""
  rows = config.train.batch // math.prod(found['mesh'][axis] for axis in ('data', 'fsdp'))
  # The dispersive loss couples the rows of a microbatch: with other microbatches it is another loss.
  microbatches = [n for n in range(2, rows + 1) if rows % n == 0 and n > config.train.accumulate
                  and not config.loss.dispersive]
  # A network without remat has no such key.
  remat = {} if config.model.get('remat', True) else dict(model=dict(remat=True))
  if remat:
    yield 'config.model.remat=True', remat
  for n in dict.fromkeys([*microbatches[:1], *microbatches[-1:]]):
    yield f'config.train.accumulate={n}', dict(train=dict(accumulate=n))
  if remat and microbatches:
    yield (f'config.model.remat=True and config.train.accumulate={microbatches[-1]}',
           remat | dict(train=dict(accumulate=microbatches[-1])))


def with_changes(config: ConfigDict, **sections: dict) -> ConfigDict:
  """A copy of the config with these values in its sections."""
  changed = config.copy_and_resolve_references()
  with changed.unlocked():
    changed.update(ConfigDict(sections))
  return changed
