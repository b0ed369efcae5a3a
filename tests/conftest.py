"""Every test runs on the CPU with eight virtual devices, in float32 unless it uses the fixture x64.

Most of the time is compiling. Without XLA_FLAGS, XLA does not optimize, which takes a fifth of the time
and computes the same mathematics; `make test-all` compiles as a user's run does.

All processes of one session share a compilation cache, a folder that the first process makes and
removes.
"""

import gc
import importlib.util
from importlib import metadata
import os
import shutil
import tempfile

os.environ['JAX_PLATFORMS'] = 'cpu'
# XLA aborts on a flag that it does not know, and newer versions do not know this one.
os.environ.setdefault('XLA_FLAGS', ' '.join((
    '--xla_force_host_platform_device_count=8', '--xla_backend_optimization_level=0',
    '--xla_cpu_parallel_codegen_split_count=1',
    *(['--xla_cpu_use_fusion_emitters=false'] if metadata.version('jaxlib') < '0.11' else []))))
os.environ.setdefault('MPLBACKEND', 'Agg')
# Two test processes on two cores: BLAS threads would only wait for each other.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', f'{tempfile.gettempdir()}/eqflow-{os.getpid()}')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.05')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '0')

import jax
import pytest

# Tracing makes many objects that live long; looking through them at the default rate takes a twentieth
# of the time.
gc.set_threshold(100_000, 50, 1000)


def pytest_collection_modifyitems(config, items):
  """Deselects tests with a marker `needs` for a package or path that is absent, or for False."""
  absent = [item for item in items
            if not all(map(_there, (mark.args[0] for mark in item.iter_markers('needs'))))]
  if absent:
    config.hook.pytest_deselected(items=absent)
    items[:] = [item for item in items if item not in absent]


def _there(place):
  if isinstance(place, bool):
    return place
  return os.path.exists(place) if os.sep in place else bool(importlib.util.find_spec(place))


def pytest_unconfigure():
  """The folder goes with the process that made it."""
  if os.environ['JAX_COMPILATION_CACHE_DIR'].endswith(f'eqflow-{os.getpid()}'):
    shutil.rmtree(os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)


@pytest.fixture
def x64():
  """float64 for one test."""
  with jax.enable_x64(True):
    yield
