"""Grids and training ranges that touch a blind spot are rejected, with the time to use instead.

Most grids have three times, because every length is compiled anew.
"""

import re

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np
import pytest

from eqflow import blind_spots, densities, fields, grids, outputs, processes, samplers
from eqflow.mix import Mix
from eqflow.processes import tables
from tests import rows


@pytest.mark.parametrize('process,output,grid,message', [
    ('linear', 'eps', grids.uniform(2),
     r"output 'eps' is blind at t=1: start the grid at t<=0.999999 or train 'v'"),
    pytest.param('cosine', 'score', grids.uniform(2), r"output 'score' is blind at t=1",
                 marks=pytest.mark.long),
    ('linear', 'x', [0.0, 0.0, 0.5],
     r"output 'x' is blind at t=0: start the grid at t>=1e-06 or train 'v'"),
    ('linear', 'equilibrium_truncated', [0.0, 0.2, 0.5], r"output 'equilibrium' is blind at"),
    pytest.param('linear', 'score', [0.0, 0.2, 0.5], r"output 'score' is blind at t=0",
                 marks=pytest.mark.long),
    ('variance_preserving', 'u', [0.0, 0.2, 0.5], r"output 'u' is blind at t=0"),
    ('linear', 'v', [1.0, 0.5, 0.7], r'times fall from 1 to 0.5 and rise from 0.5 to 0.7'),
    ('linear', 'v', [1.5, 0.5, 0.0], r"process 'linear' at t=1.5 is not a mix"),
    ('edm', 'v', [80.0, 1.0, -1.0], r"process 'edm' at t=-1 is not a mix"),
    ('linear', 'v', [np.nan, 0.0], 'two or more finite times'),
    ('linear', 'v', [1.0], 'two or more finite times'),
])
def test_a_grid_with_a_blind_spot_is_rejected_with_a_remedy(process, output, grid, message):
  with pytest.raises(ValueError, match=message):
    blind_spots.check_grid(np.asarray(grid), process=rows.PROCESSES[process],
                           output=rows.OUTPUTS[output])


@pytest.mark.parametrize('process,output,grid', [
    ('linear', 'eps', [1.0, 0.5, 0.0]), ('cosine', 'score', [1.0, 0.5, 0.0]),
    ('linear', 'x', [0.5, 1e-9, 0.0]), ('cosine', 'x', [0.5, 1e-8, 0.0]),
    ('edm', 'x', [80.0, 1e-8, 0.0]), ('edm', 'eps', [1e9, 1.0, 0.0]),
    ('edm', 'u', [3e9, 1.0, 0.0])])
def test_the_time_that_an_error_names_is_accepted(process, output, grid):
  given = dict(process=rows.PROCESSES[process], output=rows.OUTPUTS[output])
  with pytest.raises(ValueError) as error:
    blind_spots.check_grid(np.array(grid), **given)
  low, high = (re.search(rf't{sign}=([\d.e+-]*\d)', str(error.value)) for sign in '><')
  limit = (np.maximum(grid[:-1], float(low.group(1))) if low else
           np.minimum(grid[:-1], float(high.group(1))))
  blind_spots.check_grid(np.append(limit, 0.0), **given)


@pytest.mark.parametrize('output,grid,remedy', [
    ('x', [1e-9, 0.5, 1.0], 'start the grid at t>=1e-06'),
    ('x', [0.0, 0.2, 0.5], 'start the grid at t>=1e-06'),
    ('eps', [0.1, 0.5, 1.0], 'end the grid at t<=0.999999')])
def test_a_rising_grid_is_moved_at_the_right_end(output, grid, remedy):
  with pytest.raises(ValueError, match=re.escape(remedy)):
    blind_spots.check_grid(np.array(grid), process=processes.linear, output=rows.OUTPUTS[output],
                           last=True)


@pytest.mark.parametrize('output,grid', [
    ('x', [0.5, 0.0, 0.0]), ('score', [0.5, 0.2, 0.0, 0.0]), ('equilibrium_truncated', [1.0, 0.0, 0.0]),
    ('eps', [0.1, 0.5, 1.0, 1.0])])
def test_a_last_time_that_repeats_is_not_evaluated(output, grid):
  given = dict(process=processes.linear, output=rows.OUTPUTS[output])
  blind_spots.check_grid(np.array(grid), **given)
  samplers.ddim(**given).check(np.array(grid))


def test_a_process_that_is_nan_is_not_blamed_on_the_grid():
  # Bound in a closure, so that the schedule alone shows it.
  broken = lambda t: Mix(1 - t, jnp.nan * t)
  with pytest.raises(ValueError, match='at t=0.9 is not a mix .*: its numbers make no schedule'):
    blind_spots.check_grid([0.9, 0.5, 0.1], process=broken, output=outputs.v)


def test_training_on_a_table_with_nan_is_rejected():
  angles = np.array([0.0, 0.5, np.nan, 1.5])
  with pytest.raises(ValueError, match=r"'discrete' .* shape \(4,\) .* not finite at 2: "):
    blind_spots.check_training(densities.uniform, process=Partial(processes.discrete, angles=angles),
                               output=outputs.v)


def test_training_eps_on_a_table_with_zero_terminal_snr_is_rejected():
  rescaled = processes.table(tables.zero_terminal_snr(tables.linear()))
  shifted = Partial(processes.shifted, process=rescaled, shift=2.0)
  for process in (rescaled, shifted):
    with pytest.raises(ValueError, match="'eps' is blind at t=1, .* train 'v' or 'x'"):
      blind_spots.check_training(densities.uniform, process=process, output=outputs.eps)
    for output in (outputs.v, outputs.x):
      blind_spots.check_training(densities.uniform, process=process, output=output)
  for process in (processes.table(tables.linear()), processes.cosine, processes.linear):
    blind_spots.check_training(densities.uniform, process=process, output=outputs.eps)


@pytest.mark.parametrize('process', [
    lambda t: Mix(t, 1 - t),
    Partial(processes.discrete, angles=processes.table_angles(tables.linear(100))[::-1].copy())])
def test_a_process_with_less_noise_at_larger_t_is_rejected(process):
  message = 'less noise at t=.* than at t=.*: .* give 1 - t'
  for grid in ([1.0, 0.5, 0.1], [0.1, 0.5, 1.0]):
    with pytest.raises(ValueError, match=message):
      blind_spots.check_grid(np.array(grid), process=process, output=outputs.v)
  with pytest.raises(ValueError, match=message):
    blind_spots.check_training(densities.uniform, process=process, output=outputs.v)


@pytest.mark.parametrize('name', rows.PROCESSES)
def test_every_process_has_more_noise_at_larger_t(name):
  grid = np.asarray(rows.times(name, 50, 'float32'), float)[::-1]
  blind_spots.check_grid(grid, process=rows.PROCESSES[name], output=outputs.v)


@pytest.mark.parametrize('output', [
    'eps', *(pytest.param(name, marks=pytest.mark.long) for name in ('x', 'displacement', 'v'))])
def test_a_transported_output_is_rejected_where_its_own_process_has_less_noise(output, x64):
  # EDM up to 80 is as noisy as the linear process at 80/81.
  time = processes.transport(processes.edm, processes.linear, high=80.0).time
  moved = Partial(outputs.transported, output=rows.OUTPUTS[output], process_a=processes.edm, time=time)
  with pytest.raises(ValueError, match=r"'transported' is blind at t=1: start the grid at "
                     r't<=0\.9876\d* or give a process_a that is as noisy there'):
    blind_spots.check_grid(grids.uniform(2), process=processes.linear, output=moved)
  blind_spots.check_grid(grids.uniform(2, start=0.98), process=processes.linear, output=moved)


def test_the_last_time_is_checked_for_solvers_that_evaluate_there():
  grid = np.array([0.9, 0.5, 1e-9])
  given = dict(process=processes.linear, output=outputs.x)
  blind_spots.check_grid(grid, **given)
  with pytest.raises(ValueError, match="output 'x' is blind at t=1e-09"):
    blind_spots.check_grid(grid, last=True, **given)
  blind_spots.check_grid(np.array([0.9, 0.5, 0.0]), last=True, **given)


@pytest.mark.parametrize('output,density,space', [
    ('score', densities.uniform, None), ('eps', densities.uniform, 'x'),
    ('x', densities.uniform, 'eps')])
def test_a_training_range_with_a_blind_spot_is_rejected(output, density, space):
  given = dict(process=processes.linear, output=rows.OUTPUTS[output],
               space=rows.OUTPUTS[space] if space else None)
  with pytest.raises(ValueError, match=f"'{output}' .* at t=.*'uniform_on'"):
    blind_spots.check_training(density, **given)
  blind_spots.check_training(densities.uniform_on(0.001, 0.999), **given)
  blind_spots.check_training(densities.uniform, process=processes.linear, output=outputs.v,
                             space=outputs.x)


def test_a_process_that_closes_over_a_traced_number_is_not_checked():
  def check(a):
    blind_spots.check_grid(np.array([1.0, 0.5, 0.0]),
                           process=Partial(lambda t: Mix(1 - t, a * t)),
                           output=outputs.v)
    return a
  jax.jit(check)(1.0)


@pytest.mark.parametrize('output', ['v', 'u', 'x', 'edm', 'equilibrium_truncated'])
def test_outputs_that_are_not_blind_at_pure_noise_may_start_there(output):
  blind_spots.check_grid(grids.uniform(2), process=processes.linear, output=rows.OUTPUTS[output])


def test_noise_conditioning_that_is_not_finite_is_rejected():
  grid = grids.uniform(2)
  blind_spots.needs_conditioning(grid, process=processes.linear, c_noise=fields.time)
  with pytest.raises(ValueError, match="'logsnr' is not finite at t=1: "):
    blind_spots.needs_conditioning(grid, process=processes.linear, c_noise=fields.logsnr)


def test_a_check_that_passed_is_not_reused_for_another_table():
  def check(table):
    process = Partial(processes.discrete, angles=processes.table_angles(table))
    blind_spots.check_grid(np.array([1.0, 0.5, 0.0]), process=process, output=outputs.eps)
  check(tables.linear(100))
  with pytest.raises(ValueError, match=r"output 'eps' is blind at t=1"):
    check(tables.zero_terminal_snr(tables.linear(100)))
  check(tables.linear(50))


def test_a_traced_process_is_not_checked():
  def check(beta_max):
    process = Partial(processes.variance_preserving, beta_min=0.1, beta_max=beta_max)
    blind_spots.check_grid(np.array([1.0, 0.5, 0.0]), process=process, output=outputs.u)
    return beta_max
  jax.jit(check)(20.0)
