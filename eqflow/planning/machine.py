"""The memory of this machine."""

import os
import pathlib
import resource

from jax.sharding import Mesh

_CGROUPS = '/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes'


def host_memory() -> int:
  """Bytes that this process may use: of the machine, its container, and `ulimit -v` or `-d`."""
  limits = [os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')]
  limits += [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
  limits += [int(text) for path in map(pathlib.Path, _CGROUPS) if path.exists()
             and (text := path.read_text().strip()).isdecimal()]
  return min(limit for limit in limits if limit != resource.RLIM_INFINITY)


def device_memory(mesh: Mesh) -> int:
  """Bytes of each device of the mesh; CPU devices have equal parts of the host's memory."""
  found = mesh.local_devices
  stats = found[0].memory_stats() if found[0].platform != 'cpu' else None
  return (stats or {}).get('bytes_limit') or host_memory() // len(found)
