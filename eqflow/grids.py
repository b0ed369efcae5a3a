"""Grids of times for sampling: numpy float64, from noise down to data (or upwards, to invert).

The predictor is evaluated at every time except the last.
"""

from __future__ import annotations

import operator

import jax
from jax import numpy as jnp
import numpy as np

from eqflow import arrays, processes
from eqflow.arrays import Number
from eqflow.processes import Process


def uniform(num_steps: int, start: Number = 1.0, end: Number = 0.0) -> np.ndarray:
  """num_steps + 1 times, evenly spaced from `start` to `end`, float64."""
  arrays.check_scalars(start=start, end=end)
  if not np.isfinite([start, end]).all():
    raise ValueError(f'start={start}, end={end}: give finite times')
  return np.linspace(start, end, _positive(num_steps) + 1)


def karras(num_steps: int, *, process: Process = processes.edm, sigma_min: Number = 0.002,
           sigma_max: Number = 80.0, rho: Number = 7.0) -> np.ndarray:
  """num_steps times evenly spaced in sigma^(1/rho), from sigma_max to sigma_min, then 0; float64.

  sigma is the noise-to-signal ratio, which on `edm` is the time itself [Karras+ 2206.00364, eq. 5].
  rho = 1 is even in sigma. Raises ValueError where the process does not reach sigma_max.
  """
  arrays.check_scalars(sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
  if not (0 < sigma_min <= sigma_max < np.inf and rho > 0):
    raise ValueError(f'sigma_min={sigma_min}, sigma_max={sigma_max}, rho={rho}: give 0 < sigma_min <= '
                     'sigma_max < inf and rho > 0')
  ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
  sigma = np.linspace(*ends, _positive(num_steps)) ** rho
  arrays.check_functions(process=process)
  if process is processes.edm:
    return np.append(sigma, 0.0)
  with jax.ensure_compile_time_eval(), jax.enable_x64(True):
    times = processes.time_of_logsnr(process, jnp.asarray(-2 * np.log(sigma)))
    reached = processes.noise_to_signal(process, times)
  if not np.allclose(reached, sigma, rtol=1e-6):
    raise ValueError(f'sigma_max={sigma_max}: the noise-to-signal ratio of process '
                     f'{arrays.name_of(process)!r} is at most {float(reached[0]):.6g}; give less')
  return np.append(times, 0.0)


def leading(num_steps: int, *, table_size: int = 1000, offset: int = 0) -> np.ndarray:
  """Times of entries k (T//n) + offset of a table of size T, for k = n - 1 down to 0; then 0.

  T = table_size, n = num_steps, and entry k is at t = (k + 1)/T. The grid never starts at pure noise
  [Lin+ 2305.08891, table 2].
  """
  entries = np.arange(_positive(num_steps)) * (table_size // num_steps) + offset
  return _entries(entries[::-1], table_size)


def linspace(num_steps: int, *, table_size: int = 1000) -> np.ndarray:
  """Times of n entries of a table of size T, evenly spaced from T - 1 to 0 and rounded; then 0."""
  return _entries(np.round(np.linspace(0, table_size - 1, _positive(num_steps)))[::-1], table_size)


def trailing(num_steps: int, *, table_size: int = 1000) -> np.ndarray:
  """Times of entries T - 1, T - 1 - T/n, ... of a table of size T; then 0. Starts at pure noise."""
  steps = table_size - np.arange(_positive(num_steps)) * (table_size / num_steps)
  return _entries(np.round(steps) - 1, table_size)


def _entries(entries, table_size):
  times = (entries + 1) / max(table_size, 1)
  if times[0] > 1 or (np.diff(times) >= 0).any() or entries[-1] < 0:
    raise ValueError(f'{len(times)} steps from entry {entries[0]:.0f} to {entries[-1]:.0f} of a table '
                     f'of {table_size} entries: take at most {table_size} steps, and an offset of 0 or '
                     'more that keeps them in the table')
  return np.append(times, 0.0)


def logsnr(num_steps: int, *, process: Process, start: Number, end: Number, low: Number = 0.0,
           high: Number = 1.0) -> np.ndarray:
  """num_steps + 1 times in [low, high], evenly spaced in log-SNR from `start` up to `end`; float64.

  `start` is at noise. Append 0 to end at data. On EDM, where t may exceed 1, give `high`.
  Raises ValueError if the process does not reach these log-SNRs.
  """
  arrays.check_functions(process=process)
  arrays.check_scalars(start=start, end=end, low=low, high=high)
  values = np.linspace(start, end, _positive(num_steps) + 1)
  with jax.ensure_compile_time_eval(), jax.enable_x64(True):
    times = processes.time_of_logsnr(process, jnp.asarray(values), low=low, high=high)
    reached = processes.logsnr(process, times)
  if not np.allclose(reached, values, atol=1e-6):
    raise ValueError(f'log-SNR from {start} to {end}: process {arrays.name_of(process)!r} only reaches '
                     f'{float(jnp.min(reached)):.6g} to {float(jnp.max(reached)):.6g} for t from '
                     f'{high} to {low}; choose start and end within that range')
  return np.asarray(times)


def _positive(num_steps):
  try:
    whole = operator.index(num_steps)
  except TypeError:
    raise ValueError(f'num_steps={num_steps!r}: give a whole number, 1 or more') from None
  if whole < 1:
    raise ValueError(f'num_steps={num_steps}: give a whole number, 1 or more')
  return whole
