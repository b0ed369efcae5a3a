"""'v5e:4x4' -> the devices of that slice as its compiler describes them; none must be present."""

import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

import jax

from eqflow.planning import chips

EXAMPLES = 'v5e:4x4, v5e:16x16, v5p:4x4x4, v6e:16x16, h100:1x8x8, h200:1x1x8, cpu:8'
GPUS = 'h100', 'h200'
# Sides of a slice, and chips of the largest for rent; compilers accept larger ones.
SIDES, MOST = {'v5e': 2, 'v6e': 2, 'v5p': 3}, {'v5e': 256, 'v6e': 256, 'v5p': 8_960}
# The packages that compile for absent devices.
PLUGINS = {'tpu': ('libtpu',), 'cuda': ('jax_plugins.xla_cuda12', 'jax_plugins.xla_cuda13')}


class Topology(NamedTuple):
  """Devices to compile for."""
  name: str
  platform: str      # as JAX names it
  chip: chips.Chip
  devices: Any


def of(name: str) -> Topology:
  """The topology called `name`: chip:XxY for TPUs, gpu:partitions x hosts x GPUs a host, cpu:devices.

  Sets JAX to the CPU: nothing runs on the devices compiled for. Raises ValueError for an unknown name
  and for a compiler that is not installed.
  """
  kind, _, shape = (name or '').partition(':')
  if kind not in chips.CHIPS or not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)*', shape):
    raise ValueError(f'--topology={name} is not a chip of {sorted(chips.CHIPS)}, a colon and the shape '
                     f'of a slice; choose one such as {EXAMPLES}')
  # Plugins without a device would fail when asked for one.
  jax.config.update('jax_platforms', 'cpu')
  sizes = [int(n) for n in shape.split('x')]
  if kind == 'cpu':
    if len(sizes) != 1:
      raise ValueError(f'--topology={name}: CPU devices have no shape; give a number, such as cpu:8')
    return _of_cpu(name, sizes[0])
  if kind in GPUS and len(sizes) != 3:
    raise ValueError(f'--topology={name}: GPUs have the shape partitions x hosts x GPUs of a host; '
                     'choose one such as h100:1x8x8, eight hosts of eight')
  if kind in SIDES and (len(sizes) != SIDES[kind] or math.prod(sizes) > MOST[kind]):
    raise ValueError(f'--topology={name}: a slice of {kind} has {SIDES[kind]} sides and at most '
                     f'{MOST[kind]:,} chips; choose one such as {EXAMPLES}')
  return _of_plugin(name, kind, shape)


def _of_cpu(name, count):
  try:
    # Works only before anything has asked JAX for devices.
    jax.config.update('jax_num_cpu_devices', count)
  except RuntimeError:
    pass
  devices = jax.devices('cpu')
  if len(devices) < count:
    raise ValueError(f'--topology={name}: this process already has {len(devices)} CPU device(s); set '
                     f'the environment variable JAX_NUM_CPU_DEVICES={count}, and remove '
                     'xla_force_host_platform_device_count from XLA_FLAGS')
  return Topology(name, 'cpu', chips.CHIPS['cpu'], devices[:count])


def _of_plugin(name, kind, shape):
  platform = 'cuda' if kind in GPUS else 'tpu'
  if not any(map(_installed, PLUGINS[platform])):
    raise ValueError(f'--topology={name}: the compiler for {platform} is not installed; run '
                     "pip install -e '.[aot]'")
  from jax.experimental import topologies
  # Without these, libtpu queries the network for its host and allows one process at a time.
  for variable, value in (('TPU_SKIP_MDS_QUERY', '1'), ('TPU_WORKER_HOSTNAMES', 'localhost'),
                          ('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')):
    os.environ.setdefault(variable, value)
  try:
    if platform == 'cuda':
      found = topologies.get_topology_desc(kind, 'cuda', target_config=chips.gpu_target(kind),
                                           topology=shape)
    else:
      found = topologies.get_topology_desc(name, 'tpu')
  except Exception as error:
    # Each plugin raises an error of its own type for an unknown shape.
    said = ' '.join(str(error).split())[:300]
    raise ValueError(f'--topology={name}: the compiler for {platform} has no such slice ({said}); '
                     f'choose one such as {EXAMPLES}') from error
  return Topology(name, platform, chips.CHIPS[kind], found.devices)


def _installed(package):
  try:
    return importlib.util.find_spec(package) is not None
  except ModuleNotFoundError:
    return False
