"""What cannot be sampled or trained is refused on the host, with the reason and the remedy."""

import re

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np
import pytest

from eqflow import fields, outputs, processes, samplers, sde, tables, times
from eqflow.mix import Mix

FALLING = tables.linear(100)
ANGLES = processes.table_angles(FALLING)
SILENT = processes.table(tables.zero_terminal_snr(FALLING))
VP = Partial(processes.variance_preserving, beta_min=0.1, beta_max=20.0)
Z = jnp.ones((2, 3))


def never(z, t):
  raise AssertionError('the network was called: the refusal came too late')


def refused(message, solver, grid, keys=None):
  with pytest.raises(ValueError, match=message):
    samplers.sample(solver, never, Z, np.asarray(grid), keys)


@pytest.mark.parametrize('output', ['x', 'eps', 'displacement', 'v'])
def test_a_transported_network_is_not_asked_beyond_its_times(output):
  transport = processes.transport(processes.edm, processes.linear, high=80.0)
  given = dict(process=processes.linear, output=Partial(
      outputs.transported, output=getattr(outputs, output), process_a=processes.edm,
      time=transport.time))
  with pytest.raises(ValueError, match='cannot give x at t=1: start the grid at') as refusal:
    times.check_grid(times.uniform_grid(4), **given)
  named = float(re.search(r't<=([\d.]+\d)', str(refusal.value))[1])
  # sigma/alpha = t/(1 - t) = 80 on the linear process.
  assert named == pytest.approx(80 / 81, abs=2e-6)
  times.check_grid(times.uniform_grid(4, start=named), **given)


@pytest.mark.parametrize('solver', [samplers.euler, samplers.heun, samplers.adams_bashforth,
                                    samplers.adaptive])
def test_nothing_moves_at_an_infinite_rate(solver):
  made = solver(VP, outputs.v)
  refused("'rate' is not finite at t=0 on 'variance_preserving'.*take ddim", made, [0.0, 0.3, 0.6])
  samplers.check(made, np.array([0.6, 0.3, 0.0]))
  samplers.check(samplers.ddim(VP, outputs.v), np.array([0.0, 0.3, 0.6]))


def test_numbers_of_a_schedule_are_looked_at_between_the_times_too():
  angles = ANGLES.copy()
  angles[5] = np.nan
  process = Partial(processes.discrete, angles=angles)
  message = "of its numbers number 5 is nan; give finite ones"
  refused(message, samplers.ddim(process, outputs.v), [1.0, 0.0])
  with pytest.raises(ValueError, match=message):
    samplers.adaptive(process, outputs.v)
  with pytest.raises(ValueError, match='the density draws t from .*' + message):
    times.check_training(times.uniform, process=process, output=outputs.v)


def test_a_schedule_that_is_none_within_its_times_is_not_answered_with_its_times():
  process = Partial(lambda t, *, shift: Mix(1 - t - shift, t), shift=0.5)
  refused('at t=1 is not a mix.*give it numbers that make a schedule', samplers.ddim(
      process, outputs.v), [1.0, 0.2])


@pytest.mark.parametrize('process', [
    Partial(processes.discrete, angles=ANGLES[::-1]), Partial(lambda t: Mix(t, 1 - t))])
def test_a_schedule_that_runs_the_other_way_is_refused(process):
  refused('less noise at t=.* than at t=.*give it 1 - t, or a table that falls',
          samplers.ddim(process, outputs.v), [0.9, 0.5, 0.1])


@pytest.mark.parametrize('output', [outputs.eps, outputs.score])
def test_what_is_blind_at_the_end_of_a_silent_table_is_neither_trained_nor_sampled(output):
  message = r'pure noise \(zero terminal SNR\)' ": train 'v' or 'x'"
  refused(message, samplers.ddim(SILENT, output), times.leading_grid(10, table_size=100))
  within = times.uniform_on(0.1, 0.9)
  with pytest.raises(ValueError, match=message):
    times.check_training(within, process=SILENT, output=output)
  times.check_training(within, process=processes.table(FALLING), output=output)
  times.check_training(within, process=SILENT, output=outputs.v)


def test_noise_is_not_taken_away():
  solver = samplers.sde(processes.linear, outputs.u, diffusion=Partial(sde.constant, norm=-1.0))
  refused("diffusion 'constant' is negative at t=0.9.*norm >= 0", solver, [0.9, 0.5, 0.0],
          jax.random.split(jax.random.key(0), 2))


@pytest.mark.parametrize('make', [
    lambda n: samplers.edm(processes.linear, outputs.v, num_steps=n, churn=1.0),
    lambda n: samplers.dpmpp_2m(processes.linear, outputs.v, num_steps=n),
    lambda n: samplers.unipc(processes.linear, outputs.v, num_steps=n)])
def test_a_solver_is_told_the_steps_that_its_grid_has(make):
  grid = times.uniform_grid(10, start=0.99)
  with pytest.raises(ValueError, match='was told num_steps=3, but the grid has 10 steps'):
    samplers.check(make(3), grid)
  samplers.check(make(10), np.append([grid[0]] * 3, grid))


def test_where_noise_is_added_is_a_range():
  with pytest.raises(ValueError, match='sigma_min=2.0, sigma_max=1.0.*0 <= sigma_min <= sigma_max'):
    samplers.edm(processes.edm, outputs.x, num_steps=4, churn=1.0, sigma_min=2.0, sigma_max=1.0)


@pytest.mark.parametrize('output,grid,remedy', [
    (outputs.eps, [0.1, 0.5, 1.0], 'end the grid at t<='),
    (outputs.x, [0.0, 0.5, 0.9], 'start the grid at t>=')])
def test_a_grid_that_rises_is_mended_at_the_end_that_is_blind(output, grid, remedy):
  refused(remedy, samplers.heun(processes.linear, output), grid)


def test_the_remedy_of_a_solver_is_one_that_it_has():
  solver = samplers.edm(processes.linear, outputs.v, num_steps=2, churn=1.0)
  refused('at t=1: .* or take heun', solver, [1.0, 0.5, 0.0], jax.random.split(jax.random.key(0), 2))


@pytest.mark.parametrize('table', [[0.9, np.nan, 0.1], [1.1, 0.5, 0.1], [0.5, 0.9, 0.1]])
def test_what_is_no_table_is_answered_with_what_is_one(table):
  with pytest.raises(ValueError, match='give the cumulated product of 1 - beta, 0 < beta < 1'):
    tables.check(np.array(table))


@pytest.mark.parametrize('call,message', [
    (lambda: samplers.ddim(processes.linear, outputs.u, churn=jnp.array([0.1, 0.2])),
     'churn=.*give one number from 0'),
    (lambda: samplers.ancestral(processes.linear, outputs.u, variance=jnp.array([0.1, 0.2])),
     'variance=.*give one number from 0')])
def test_one_number_is_asked_for(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_a_label_that_is_not_finite_names_the_time():
  with pytest.raises(ValueError, match="noise label 'logsnr' is not finite at t=1 on 'linear'"):
    times.check_grid([1.0, 0.0], process=processes.linear, output=outputs.v,
                     label_noise=fields.logsnr)
