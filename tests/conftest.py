"""Every test runs on the CPU with eight virtual devices; float64 is asked for where it is meant."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=8')
os.environ.setdefault('MPLBACKEND', 'Agg')
# Two test processes on two cores: BLAS threads would only wait for each other.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

import jax
import pytest


@pytest.fixture
def x64():
  """float64 for one test."""
  with jax.enable_x64(True):
    yield
