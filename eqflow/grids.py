"""Grids of times for sampling, numpy float64, falling from noise to data (or rising, to invert).

The predictor is evaluated at every entry but the last.
"""

import operator

import jax
from jax import numpy as jnp
import numpy as np

from eqflow import arrays, processes
from eqflow.arrays import Number
from eqflow.blind_spots import check_grid, check_training
from eqflow.densities import (
    Adaptive, Density, adaptive, cosmap, draw, logit_normal, lognormal, low_discrepancy, mode, uniform,
    uniform_on, with_data)
from eqflow.processes import Process

__all__ = ['Adaptive', 'Density', 'adaptive', 'check_grid', 'check_training', 'cosmap', 'draw',
           'logit_normal', 'lognormal', 'low_discrepancy', 'mode', 'uniform', 'uniform_on', 'with_data']


def uniform_grid(num_steps: int, start: Number = 1.0, end: Number = 0.0) -> np.ndarray:
  """num_steps + 1 times, evenly from `start` to `end`, float64."""
  return np.linspace(start, end, _positive(num_steps) + 1)


def karras_grid(num_steps: int, *, process: Process = processes.edm, sigma_min: Number = 0.002,
                sigma_max: Number = 80.0, rho: Number = 7.0) -> np.ndarray:
  """num_steps times even in sigma^(1/rho), sigma_max to sigma_min, then 0; float64.

  sigma is the noise-to-signal ratio, the time itself on `edm` [Karras+ 2206.00364, eq. 5]. rho = 1
  is even in sigma. Raises ValueError where a bounded process does not reach sigma_max.
  """
  if not (0 < sigma_min <= sigma_max and rho > 0):
    raise ValueError(f'sigma_min={sigma_min}, sigma_max={sigma_max}, rho={rho}: sigma falls from '
                     'sigma_max to a sigma_min above 0, and rho is above 0')
  ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
  sigma = np.linspace(*ends, _positive(num_steps)) ** rho
  if process is processes.edm:
    return np.append(sigma, 0.0)
  with jax.ensure_compile_time_eval(), jax.enable_x64(True):
    times = processes.time_of_logsnr(process, jnp.asarray(-2 * np.log(sigma)))
    reached = processes.noise_to_signal(process, times)
  if not np.allclose(reached, sigma, rtol=1e-6):
    raise ValueError(f'sigma from {sigma_max} to {sigma_min} on {arrays.name_of(process)!r}, whose '
                     f'sigma/alpha goes up to {float(reached[0]):.6g}: choose sigma_max within')
  return np.append(times, 0.0)


def leading_grid(num_steps: int, *, table_size: int = 1000, offset: int = 0) -> np.ndarray:
  """Times of a table's entries k (T//n), k = n - 1 to 0, moved by `offset` entries; then 0.

  For a table of T = table_size, whose entry k is t = (k + 1)/T. It never starts at pure noise
  [Lin+ 2305.08891, table 2].
  """
  entries = np.arange(_positive(num_steps)) * (table_size // num_steps) + offset
  return _entries(entries[::-1], table_size)


def linspace_grid(num_steps: int, *, table_size: int = 1000) -> np.ndarray:
  """Times of n entries of a table of T, rounded from an even spacing of 0 to T - 1; then 0."""
  return _entries(np.round(np.linspace(0, table_size - 1, _positive(num_steps)))[::-1], table_size)


def trailing_grid(num_steps: int, *, table_size: int = 1000) -> np.ndarray:
  """Times of entries T - 1, T - 1 - T/n, ... of a table of T; then 0. It starts at pure noise."""
  steps = table_size - np.arange(_positive(num_steps)) * (table_size / num_steps)
  return _entries(np.round(steps) - 1, table_size)


def _entries(entries, table_size):
  times = (entries + 1) / max(table_size, 1)
  if times[0] > 1 or (np.diff(times) >= 0).any() or entries[-1] < 0:
    raise ValueError(f'{len(times)} steps over a table of {table_size} entries, from entry '
                     f'{entries[0]:.0f} to {entries[-1]:.0f}: take fewer steps than entries, and an '
                     f'offset from 0 that stays below {table_size}')
  return np.append(times, 0.0)


def logsnr_grid(num_steps: int, *, process: Process, start: Number, end: Number, low: Number = 0.0,
                high: Number = 1.0) -> np.ndarray:
  """num_steps + 1 times in [low, high], even in log-SNR from `start` (noise) up to `end`; float64.

  Append 0 to step on to the data. EDM's t is not bounded by 1: give it a `high`. Raises ValueError
  where the process does not reach the log-SNR asked for.
  """
  values = np.linspace(start, end, _positive(num_steps) + 1)
  with jax.ensure_compile_time_eval(), jax.enable_x64(True):
    times = processes.time_of_logsnr(process, jnp.asarray(values), low=low, high=high)
    reached = processes.logsnr(process, times)
  if not np.allclose(reached, values, atol=1e-6):
    raise ValueError(f'log-SNR from {start} to {end} on {arrays.name_of(process)!r}, which goes from '
                     f'{float(jnp.min(reached)):.6g} to {float(jnp.max(reached)):.6g} for t from '
                     f'{high} to {low}: choose start and end within')
  return np.asarray(times)


def _positive(num_steps):
  try:
    whole = operator.index(num_steps)
  except TypeError:
    raise ValueError(f'num_steps={num_steps}: give a whole number, 1 or more') from None
  if whole < 1:
    raise ValueError(f'num_steps={num_steps}: a grid has at least one step')
  return whole
