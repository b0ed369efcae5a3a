"""Sampling by a config: its solver, its grid of times and its guidance, checked and bound.

Whatever cannot be sampled as asked for is refused by its key, before anything compiles.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import numpy as jnp
from jax.tree_util import Partial
from ml_collections import ConfigDict

from eqflow import arrays, blind_spots, descent, fields, guidance, samplers
from eqflow.arrays import Data, Stream
from eqflow.config.errors import ConfigError, naming
from eqflow.config.sections import called, numbers, row_of
from eqflow.config.tables import DESCENDED, DESCENTS, GRIDS, INTERVALS, NESTED, SOLVERS
from eqflow.outputs import Output
from eqflow.processes import Process


class Sampling(NamedTuple):
  """What a config samples with, and samples are made of: noise, a predictor, the way to data."""
  process: Process
  grid: Any             # the times to go along, or None for a descent
  noise: Callable       # keys -> eps [b, ...]
  predictor: Callable   # (params, labels) -> Predict, guided by class as config.sample says
  carry: Callable       # (predict, z, keys, grid) -> (z, evaluations [b], norms [b])
  refill: Callable | None   # (network, z, condition, keys, slots) -> as carry; None: all take as long


class Guided(NamedTuple):
  """Parameters, and the network that what they predict is guided away from."""
  params: Any
  guide: Any   # Network, a pytree


def classless(z: Data, t: Any, condition: Any, *, network: Any) -> Data:
  """network(z, t, None): one without classes where a condition is given, all but `network` bound."""
  return network(z, t, None)


def sampling_of(config: ConfigDict, network: Callable, process: Process, output: Output,
                label_noise: Callable) -> Sampling:
  """How params -> network(params) is sampled, as config.sample says.

  `carry` goes from z at grid[0], or descends with grid None. Its norms are those of the field where
  a threshold stops descents, and NaN elsewhere. Raises ValueError naming the key at fault.
  """
  section = config.sample
  solver, grid = _solver(config, process, output, label_noise)
  guide = _guidance(section, config.data.num_classes, process,
                    config.train.drop_label)

  def noise(keys):
    return arrays.noise_like(keys, jnp.zeros((len(keys), *config.data.shape)))

  def predictor(params, labels):
    if isinstance(params, Guided):
      return guide(network(params.params), labels, params.guide)
    return guide(network(params), labels)

  def carry(predict, z, keys, grid):
    b = arrays.batch_size(z)
    if grid is not None:
      z, state = samplers.run(solver, predict, z, grid, keys)
      count = samplers.evaluations(solver, grid, state)
      return z, jnp.broadcast_to(count, b), jnp.full(b, jnp.nan)
    steps, norms = jnp.full(b, section.num_steps), jnp.full(b, jnp.nan)
    if section.threshold:
      z, steps, norms = descent.descend_until(solver, predict, z, max_steps=section.num_steps,
                                              threshold=section.threshold, keys=keys)
    else:
      z = descent.descend(solver, predict, z, num_steps=section.num_steps, keys=keys)
    return z, descent.evaluations(solver, steps), norms

  def refill(network, z, condition, keys, slots):
    z, steps, norms = descent.descend_refilled(
        solver, network, z, condition, slots=slots, max_steps=section.num_steps,
        threshold=section.threshold, keys=keys)
    return z, descent.evaluations(solver, steps), norms

  return Sampling(process, grid, noise, predictor, carry, refill if section.threshold else None)


def draw(sampling: Sampling, params: Any, keys: Any, labels: Any) -> tuple[Any, Any, Any]:
  """(x [b, ...], evaluations [b], norms [b]) of samples that are functions of key and label."""
  predict = sampling.predictor(params, labels)
  z = pure_noise(sampling, sampling.noise(arrays.fold(keys, Stream.START)))
  return sampling.carry(predict, z, arrays.fold(keys, Stream.SOLVER), sampling.grid)


def draw_refilled(sampling: Sampling, params: Any, keys: Any, labels: Any, *,
                  slots: int) -> tuple[Any, Any, Any]:
  """`draw` of all n samples, `slots` at a time: where one has stopped, the next one starts."""
  network = Partial(_predicted, params=params, predictor=arrays.Static(sampling.predictor))
  z = pure_noise(sampling, sampling.noise(arrays.fold(keys, Stream.START)))
  return sampling.refill(network, z, labels, arrays.fold(keys, Stream.SOLVER), slots)


def _predicted(z, t, condition, *, params, predictor):
  return predictor.value(params, condition)(z, t)


def pair(sampling: Sampling, params: Any, keys: Any, labels: Any) -> tuple[Any, Any, Any]:
  """(eps, x [b, ...], norms [b]): noise and the sample that it becomes, with the norms of `carry`."""
  # Noise of its own: who trains on pairs is judged by samples from noise that is not among them.
  eps = sampling.noise(arrays.fold(keys, Stream.PAIRS))
  # No keys: a solver that draws, and so makes no map of noise to data, refuses.
  predict = sampling.predictor(params, labels)
  x, _, norms = sampling.carry(predict, pure_noise(sampling, eps), None, sampling.grid)
  return eps, x, norms


def pure_noise(sampling: Sampling, eps: Data) -> Data:
  """sigma eps at the first time: where samples start."""
  return arrays.combine((sampling.process(jnp.float32(first_time(sampling))).eps, eps))


def first_time(sampling: Sampling) -> float:
  """The time at which samples start: the grid's first, and 1 for a descent."""
  return 1.0 if sampling.grid is None else float(sampling.grid[0])


def scale_of(section: ConfigDict) -> guidance.Scale:
  """config.sample.scale: a number, or one for each entry of the last axis; 1 where all are 1."""
  if not isinstance(section.scale, (tuple, list)):
    return section.scale
  scale = tuple(map(float, section.scale))
  return 1 if set(scale) == {1.0} else scale


def _guidance(section, classes, process, drop):
  """(network, labels, guide=None) -> Predict: guided at config.sample.scale, in its interval.

  Away from `guide`, a network, where config.sample.guide names one; else from the null class.
  """
  scale, other = scale_of(section), section.get('guide') and section.guide.workdir
  # Half an interval is one that is open to infinity.
  interval = called(INTERVALS, section.interval, 'sample.interval', unbounded=True)
  if interval:
    with naming('sample.interval'):
      guidance.check_interval(interval['low'], interval['high'])
  if other and scale == 1:
    raise ConfigError('sample.guide.workdir', other, 'has no effect at config.sample.scale=1',
                      "use a scale above 1, or --config.sample.guide.workdir=''")
  if scale != 1 and not classes and not other:
    raise ConfigError('sample.scale', scale, 'guides by class, but config.data.num_classes=0',
                      'use --config.sample.scale=1, or set config.sample.guide.workdir')
  if scale != 1 and not other and not drop:
    raise ConfigError('sample.scale', scale, 'needs a network trained without labels too, but '
                      f'config.train.drop_label={drop}', 'train with --config.train.drop_label=0.1, '
                      'or set '
                      'config.sample.guide.workdir to a run that is weaker or has no classes')
  if interval and section.solver.name in DESCENTS:
    raise ConfigError('sample.interval.name', section.interval.name, 'limits guidance to an interval '
                      'of '
                      f'times, but config.sample.solver.name={section.solver.name!r} has no time',
                      'use --config.sample.interval.name=always')

  def predictor(network, labels, guide=None):
    alone = fields.bind(network, labels if classes else None)
    # In training nothing is loaded beside the network: its pictures are not guided.
    if scale == 1 or other and guide is None:
      return alone
    if other:
      guided = guidance.autoguided(alone, fields.bind(guide, labels), scale=scale,
                                 rescale=section.rescale)
    else:
      guided = guidance.guided(network, labels, jnp.full_like(labels, classes), scale=scale,
                             rescale=section.rescale)
    return guidance.on_interval(guided, alone, process=process, **interval) if interval else guided

  return predictor


def _solver(config, process, output, label_noise):
  """The solver of config.sample, and its grid of times, or None for a descent."""
  section = config.sample
  path = 'sample.solver'
  row = row_of({**SOLVERS, **DESCENTS}, section.solver, path)
  name = section.solver.name
  found = numbers(row, section.solver, path, nested=NESTED, num_steps=section.num_steps)
  if name in DESCENTS:
    if not found.get('step_size', 1) > 0:
      raise ConfigError(f'{path}.step_size', found['step_size'], 'must be above 0')
    if label_noise is not fields.none:
      raise ConfigError(
          f'{path}.name', name, 'descends a field without time, but config.model.label_noise is '
          f'{arrays.name_of(label_noise)!r}',
          f'train with --config.model.label_noise.name=none, or sample with one of {sorted(SOLVERS)}')
    if config.output.name not in DESCENDED:
      raise ConfigError(
          f'{path}.name', name, f'needs a field that vanishes at data, but config.output.name='
          f'{config.output.name!r} does not',
          f'train one of {list(DESCENDED)}, or sample with one of {sorted(SOLVERS)}')
    with naming(path):
      return row(**found), None
  if section.threshold:
    raise ConfigError('sample.threshold', section.threshold, 'needs a solver that descends: one of '
                      f'{sorted(DESCENTS)}', 'use --config.sample.threshold=0')
  grid = called(GRIDS, section.get('grid'), 'sample.grid', num_steps=section.num_steps, process=process)
  with naming('sample.grid'):
    blind_spots.check_grid(grid, process=process, output=output)
    blind_spots.needs_conditioning(grid, process=process, label_noise=label_noise)
    _check_ends(grid, process)
  with naming(path):
    solver = row(process, output, **found)
    solver.check(grid)
  return solver, grid


def _check_ends(grid, process):
  """Raises ValueError where a grid does not fall from noise all the way to data."""
  first, last = (process(jnp.float32(t)) for t in (grid[0], grid[-1]))
  if grid[0] <= grid[-1] or not last.eps <= 0.1 * last.x:
    raise ValueError(f'times that start at {grid[0]:.4g} and end at {grid[-1]:.4g} do not end at data: '
                     'samples fall from noise to a time where sigma is a tenth of alpha at most, '
                     'such as 0')
  if not first.eps > first.x:
    raise ValueError(f'times that start at {grid[0]:.4g} do not start at noise: sigma is '
                     f'{float(first.eps):.4g} there, alpha {float(first.x):.4g}')
