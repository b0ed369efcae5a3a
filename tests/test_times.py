"""Densities are what they claim, grids are those of the papers, blind spots are refused."""

import re

import jax
from jax.tree_util import Partial
import numpy as np
import pytest

from eqflow import fields, outputs, processes, tables, times
from tests import rows

def test_the_karras_grid_is_edms():
  grid = times.karras_grid(32)
  assert len(grid) == 33 and grid[0] == pytest.approx(80) and grid[31] == pytest.approx(0.002)
  assert grid[32] == 0
  for at, sigma in ((13, 4.9991), (17, 1.6086), (19, 0.8446), (22, 0.2830)):
    assert grid[at] == pytest.approx(sigma, abs=6e-5), f'sigma_{at} is {grid[at]}'


def test_the_log_snr_grid_is_even_in_log_snr_in_float64():
  grid = times.logsnr_grid(16, process=processes.linear, start=-8.0, end=8.0)
  assert grid.dtype == np.float64
  # lambda = 2 log((1 - t)/t).
  np.testing.assert_allclose(2 * np.log((1 - grid) / grid), np.linspace(-8, 8, 17), atol=1e-12)
  with pytest.raises(ValueError, match='num_steps=0'):
    times.uniform_grid(0)


@pytest.mark.parametrize('process,output,grid,message', [
    ('linear', 'eps', times.uniform_grid(10),
     r"output 'eps' cannot give x at t=1: start the grid at t<=0.999999 or train 'v'"),
    ('cosine', 'score', times.uniform_grid(10), r"output 'score' cannot give x at t=1"),
    ('linear', 'x', [0.5, 0.0, 0.0],
     r"output 'x' cannot give x at t=0: end the grid at t>=1e-06 or train 'v'"),
    ('linear', 'equilibrium_truncated', [0.5, 0.0, 0.0], r"output 'equilibrium' cannot give x at"),
    ('linear', 'score', [0.5, 0.0, 0.0], r"output 'score' cannot give x at t=0"),
    ('variance_preserving', 'u', [0.5, 0.0, 0.0], r"output 'u' cannot give x at t=0"),
    ('linear', 'v', [1.0, 0.5, 0.7], r'times fall from 1 to 0.5 and rise from 0.5 to 0.7'),
    ('linear', 'v', [1.5, 0.0], r"process 'linear' at t=1.5 is not a mix"),
    ('edm', 'v', [80.0, -1.0], r"process 'edm' at t=-1 is not a mix"),
    ('linear', 'v', [np.nan, 0.0], r'a grid is at least two finite times'),
    ('linear', 'v', [1.0], r'a grid is at least two finite times'),
])
def test_a_grid_that_cannot_work_is_refused_with_the_remedy(process, output, grid, message):
  with pytest.raises(ValueError, match=message):
    times.check_grid(np.asarray(grid), process=rows.PROCESSES[process],
                     output=rows.OUTPUTS[output])


@pytest.mark.parametrize('process,output,grid', [
    ('linear', 'eps', [1.0, 0.5, 0.0]), ('cosine', 'score', [1.0, 0.5, 0.0]),
    ('linear', 'x', [0.5, 1e-9, 0.0]), ('cosine', 'x', [0.5, 1e-8, 0.0]),
    ('edm', 'x', [80.0, 1e-8, 0.0]), ('edm', 'eps', [1e9, 1.0, 0.0]),
    ('edm', 'u', [3e9, 1.0, 0.0])])
def test_the_time_that_a_refusal_names_is_accepted(process, output, grid):
  given = dict(process=rows.PROCESSES[process], output=rows.OUTPUTS[output])
  with pytest.raises(ValueError) as refusal:
    times.check_grid(np.array(grid), **given)
  low, high = (re.search(rf't{sign}=([\d.e+-]*\d)', str(refusal.value)) for sign in '><')
  limit = (np.maximum(grid[:-1], float(low.group(1))) if low else
           np.minimum(grid[:-1], float(high.group(1))))
  times.check_grid(np.append(limit, 0.0), **given)


def test_a_solver_that_looks_ahead_has_its_last_time_checked():
  grid = np.array([0.9, 0.5, 1e-9])
  given = dict(process=processes.linear, output=outputs.x)
  times.check_grid(grid, **given)
  with pytest.raises(ValueError, match="output 'x' cannot give x at t=1e-09"):
    times.check_grid(grid, last=True, **given)
  times.check_grid(np.array([0.9, 0.5, 0.0]), last=True, **given)


@pytest.mark.parametrize('output,density,space', [
    ('score', times.uniform, None), ('eps', times.uniform, 'x'), ('x', times.uniform, 'eps')])
def test_a_training_range_that_touches_a_blind_spot_is_refused(output, density, space):
  given = dict(process=processes.linear, output=rows.OUTPUTS[output],
               space=rows.OUTPUTS[space] if space else None)
  with pytest.raises(ValueError, match="has no bounded loss at t=.*'uniform_on'"):
    times.check_training(density, **given)
  times.check_training(times.uniform_on(0.001, 0.999), **given)
  times.check_training(times.uniform, process=processes.linear, output=outputs.v, space=outputs.x)


def test_the_check_is_silent_where_a_function_closes_over_a_traced_number():
  def check(a):
    times.check_grid(np.array([1.0, 0.0]), process=Partial(lambda t: processes.Mix(1 - t, a * t)),
                     output=outputs.v)
    return a
  jax.jit(check)(1.0)


@pytest.mark.parametrize('output', ['v', 'u', 'x', 'edm', 'equilibrium_truncated'])
def test_outputs_that_see_pure_noise_may_start_there(output):
  times.check_grid(times.uniform_grid(10), process=processes.linear, output=rows.OUTPUTS[output])


def test_a_noise_label_that_is_not_finite_is_refused():
  grid = times.uniform_grid(10)
  times.check_grid(grid, process=processes.linear, output=outputs.v, label_noise=fields.time)
  with pytest.raises(ValueError, match="noise label 'logsnr' is not finite at t=1"):
    times.check_grid(grid, process=processes.linear, output=outputs.v, label_noise=fields.logsnr)


def test_a_check_that_passed_says_nothing_of_another_table():
  def check(table):
    process = Partial(processes.discrete, angles=processes.table_angles(table))
    times.check_grid(np.array([1.0, 0.0]), process=process, output=outputs.eps)
  check(tables.linear(100))
  with pytest.raises(ValueError, match=r"output 'eps' cannot give x at t=1"):
    check(tables.zero_terminal_snr(tables.linear(100)))
  check(tables.linear(50))


def test_the_check_is_silent_where_numbers_are_traced():
  def check(beta_max):
    process = Partial(processes.variance_preserving, beta_min=0.1, beta_max=beta_max)
    times.check_grid(np.array([1.0, 0.0]), process=process, output=outputs.u)
    return beta_max
  jax.jit(check)(20.0)
