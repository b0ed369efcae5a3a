"""Errors of conversions in units in the last place, orders of convergence, and exact equalities.

The tests check bounds on these numbers; this prints the numbers.
"""

import itertools

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np

from eqflow import oracles, outputs, processes, samplers
from eqflow.mix import det, mix, remix
from tests import rows
from tests.laws.solvers import field
from tests.samplers import test_onestep


def units_in_the_last_place(dtype, count=997):
  """The largest relative error over all conversions: outputs x outputs x processes x times."""
  wide = np.longdouble if dtype == 'float64' else np.float64
  rng, worst = np.random.default_rng(0), (0.0,)
  for name, process in rows.PROCESSES.items():
    t = rows.times(name, count, dtype)
    x, eps = (jnp.asarray(rng.normal(size=count), dtype) for _ in range(2))
    state = process(t)
    exact = lambda m: sum(np.asarray(c).astype(wide) * np.asarray(a).astype(wide)
                          for c, a in zip(m, (x, eps)))
    spread = lambda m: sum(abs(np.asarray(c).astype(wide) * np.asarray(a).astype(wide))
                           for c, a in zip(m, (x, eps)))
    for source, target in itertools.product(rows.OUTPUTS, rows.OUTPUTS):
      out, to = (rows.OUTPUTS[key](process, t) for key in (source, target))
      found = remix(to, state=state, out=out, z=mix(state, x, eps), y=mix(out, x, eps))
      area = det(state, out)
      scale = (abs(np.asarray(det(to, out) / area)) * spread(state)
               + abs(np.asarray(det(state, to) / area)) * spread(out) + spread(to))
      error = float((abs(np.asarray(found) - exact(to)) / scale).max() / np.finfo(dtype).eps)
      worst = max(worst, (error, name, source, target))
  return f'{worst[0]:.2f} ({worst[2]} to {worst[3]} on {worst[1]})'


def order(solver, process, output):
  start, end, steps = 0.98, 0.02, np.array([32, 64, 128, 256])
  z = jnp.array([[-1.0], [0.3], [2.0]])
  predict = Partial(oracles.gaussian, process=process, output=output,
                    mean=jnp.array([test_onestep.MEAN]), cov=jnp.array([[test_onestep.STD**2]]))
  errors = []
  for n in steps:
    grid = np.concatenate([np.full(steps[-1] - n, start), np.linspace(start, end, n + 1)])
    found = samplers.sample(solver(process, output), predict, z, grid)
    errors.append(float(abs(found - test_onestep.exact(process, z, start, end)).max()))
  return f'{-np.polyfit(np.log(steps), np.log(errors), 1)[0]:.2f}'


def ancestral_bias(process):
  coefficients = jax.jit(jax.vmap(
      lambda t, s: jnp.stack(test_onestep.affine(process, outputs.v, t, s))))
  steps, bias = np.array([128, 256, 512]), []
  for n in steps:
    grid = jnp.asarray(np.linspace(1, 0, n + 1))
    variance = 1.0
    for a, _, b in np.asarray(coefficients(grid[:-1], grid[1:])):
      variance = a * a * variance + b * b
    bias.append(abs(variance - test_onestep.STD**2))
  return f'{-np.polyfit(np.log(steps), np.log(bias), 1)[0]:.2f}'


def euler_against_ddim(steps):
  z = jax.random.normal(jax.random.key(0), (64, 3))
  grid = np.linspace(1, 1 - 1 / 50, 2) if steps == 1 else np.linspace(1, 0, 51)
  ends = [samplers.sample(make(processes.linear, outputs.u), field, z, grid)
          for make in (samplers.ddim, samplers.euler)]
  return f'{float(abs(ends[0] - ends[1]).max() / abs(ends[0]).max()):.1e}'


def scaled_against_plain(steps):
  c, output = test_onestep.scale, outputs.eps
  stretched = Partial(processes.scaled, process=processes.cosine, scale=Partial(c))
  z = jax.random.normal(jax.random.key(0), (64, 3))
  grid = np.linspace(0.98, 0.96, 2) if steps == 1 else np.linspace(0.98, 0, 51)
  plain = samplers.sample(samplers.ddim(processes.cosine, output), field, z, grid)
  unscaled = lambda z, t: field(z / c(t)[:, None], t)
  other = samplers.sample(samplers.ddim(stretched, output), unscaled, c(grid[0]) * z, grid)
  return f'{float(abs(other / c(grid[-1]) - plain).max() / abs(plain).max()):.1e}'


def main():
  linear, cosine = processes.linear, processes.cosine
  rows_of = [
      ('worst conversion, float32, units in the last place', units_in_the_last_place('float32')),
      ('worst conversion, float64, units in the last place', units_in_the_last_place('float64')),
      ('order of ddim, linear, u', order(samplers.ddim, linear, outputs.u)),
      ('order of ddim, cosine, v', order(samplers.ddim, cosine, outputs.v)),
      ('order of euler, cosine, v', order(samplers.euler, cosine, outputs.v)),
      ('order of heun, linear, u', order(samplers.heun, linear, outputs.u)),
      ('order of heun, cosine, v', order(samplers.heun, cosine, outputs.v)),
      ('order of the variance bias of ancestral sampling, linear', ancestral_bias(linear)),
      ('order of the variance bias of ancestral sampling, cosine', ancestral_bias(cosine)),
      ('Euler minus DDIM on the linear process, 1 step', euler_against_ddim(1)),
      ('Euler minus DDIM on the linear process, 50 steps', euler_against_ddim(50)),
      ('DDIM on a scaled process minus DDIM on the plain one, 1 step', scaled_against_plain(1)),
      ('DDIM on a scaled process minus DDIM on the plain one, 50 steps', scaled_against_plain(50)),
      *[(f'DDPM minus DDIM over twice the log-SNR plus forward noise, {name}, {steps}',
         f'{test_onestep.ancestral_against_ddim(name, n):.1e}')
        for name in ('linear', 'cosine') for n, steps in ((1, '1 step'), (50, '50 steps'))],
  ]
  print('| law | measured |\n|---|---|')
  for name, value in rows_of:
    print(f'| {name} | {value} |')


if __name__ == '__main__':
  with jax.enable_x64(True):
    main()
