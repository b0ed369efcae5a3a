"""ConfigDict -> functions.

A section of a config is {'name': row of a table, **the row's numbers}. What does not fit is refused
with a list of what exists, before anything compiles.
"""

from collections.abc import Callable
import contextlib
import inspect
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from ml_collections import ConfigDict
import numpy as np

from eqflow import arrays, descent, ema, fields, losses, times
from eqflow.names import (
    DENSITIES, DESCENTS, DTYPES, GRIDS, LABELS, MODELS, NESTED, OUTPUTS, PROCESSES, SCALES, SCHEDULES,
    SOLVERS, WEIGHTS)
from eqflow.sections import bound, called, check_ranges, choose, needed, numbers, row_of
from eqflow.solver import evaluations, run
from eqflow.training import optimizer as optimizers

class Recipe(NamedTuple):
  """What a config means: pure functions, and the optimizer that they are trained with."""
  init: Callable        # key -> params
  network: Callable     # params -> Network, told time and scale as the config says
  loss: Callable        # (keys, params, batch) -> ([b], aux)
  optimizer: Any        # optax.GradientTransformation
  keep: Callable        # step -> {name of average: keep}
  draw: Callable        # (params, keys, labels) -> ([b, ...], evaluations [b])


def recipe(config: ConfigDict) -> Recipe:
  """Everything a run computes, from its config alone. Raises ValueError naming the key at fault."""
  check_ranges(config)
  process = bound(PROCESSES, config.process, 'process', nested=NESTED)
  output = bound(OUTPUTS, config.output, 'output', nested=NESTED)
  module = model(config.model, config.data.num_classes)
  scale_input = bound(SCALES, config.model.scale_input, 'model.scale_input')
  label_noise = bound(LABELS, config.model.label_noise, 'model.label_noise')

  def init(key):
    z = jnp.zeros((1, *config.data.shape))
    label = jnp.zeros(1, jnp.int32) if config.data.num_classes else None
    return module.init(key, z, jnp.zeros(1), label)['params']

  with _naming('model'):
    jax.eval_shape(init, jax.random.key(0))

  def network(params):
    return fields.conditioned(Partial(module.apply, {'params': params}), process,
                              scale_input=scale_input, label_noise=label_noise)

  return Recipe(
      init=init, network=network,
      loss=_loss(config, network, process, output),
      optimizer=_optimizer(config),
      keep=_keep(config),
      draw=_draw(config, network, process, output, label_noise))


def model(section: ConfigDict, num_classes: int) -> Any:
  """The flax module of config.model."""
  options = {k: v for k, v in section.items() if k not in ('name', 'scale_input', 'label_noise')}
  for key in ('dtype', 'param_dtype'):
    if key in options:
      options[key] = choose(DTYPES, options[key], f'model.{key}')
  make = choose(MODELS, section.name, 'model.name')
  known = [k for k in inspect.signature(make).parameters if k not in ('parent', 'name')]
  for key in options:
    if key not in known or key == 'num_classes':
      raise ValueError(f'config.model.{key}: {section.name!r} takes {sorted(known)}; '
                       'num_classes stands in config.data')
  return make(num_classes=num_classes, **options)


def _loss(config, network, process, output):
  density = called(DENSITIES, config.loss.density, 'loss.density')
  space = choose(OUTPUTS, config.loss.space, 'loss.space') if config.loss.space else None
  if space is not None and needed(space):
    raise ValueError(f'config.loss.space={config.loss.space!r} has numbers of its own: choose from '
                     f'{sorted(k for k, row in OUTPUTS.items() if not needed(row))}')
  weight = bound(WEIGHTS, config.loss.weight, 'loss.weight', nested=NESTED, density=density)
  with _naming('loss'):
    times.check_training(density, process=process, output=output, space=space)
  drop, classes = config.train.drop_label, config.data.num_classes

  def loss(keys, params, batch):
    label = None
    if classes:
      null = times.draw(arrays.fold(keys, 2)) < drop
      label = jnp.where(null, classes, batch['label'])
    u = None
    if config.loss.stratified:
      u = times.low_discrepancy(batch['index'], np.uint32(config.seed))
    return losses.matching_loss(
        keys, fields.bind(network(params), label), batch['x'], process=process, output=output,
        density=density, u=u, space=space, weight=weight)

  return loss


def _optimizer(config):
  section = config.optimizer
  shape = bound(SCHEDULES, section.schedule, 'optimizer.schedule',
                num_examples=config.train.num_examples)
  schedule = optimizers.learning_rate(
      rate=section.rate, shape=shape, warmup_examples=section.warmup_examples,
      batch=config.train.batch)
  return optimizers.adamw(schedule, b1=section.b1, b2=section.b2, eps=section.eps,
                          weight_decay=section.weight_decay, clip=section.clip)


def ema_names(config: ConfigDict) -> dict[str, float]:
  """{name: decay} of the averages that the run keeps; a name is its decay as written."""
  return {f'{decay:g}': decay for decay in config.ema.decays}


def _keep(config):
  decays = ema_names(config)
  if config.sample.params not in ('params', *decays):
    raise ValueError(f'config.sample.params={config.sample.params!r}: choose from '
                     f'{["params", *decays]}')
  return lambda step: {name: ema.warmed(decay, step) for name, decay in decays.items()}


def _draw(config, network, process, output, label_noise):
  section, classes = config.sample, config.data.num_classes
  solver, grid = _solver(section, process, output, label_noise)
  if not classes and section.scale != 1:
    raise ValueError(f'config.sample.scale={section.scale} guides by class, but '
                     'config.data.num_classes=0: set it to 1')
  start = process(jnp.float32(1.0 if grid is None else grid[0])).eps

  def draw(params, keys, labels):
    noise = arrays.noise_like(arrays.fold(keys, 0), jnp.zeros((len(keys), *config.data.shape)))
    z = arrays.combine((start, noise))
    net = network(params)
    predict = fields.bind(net, None)
    if classes:
      predict = fields.guided(net, labels, jnp.full_like(labels, classes), scale=section.scale)
    if grid is not None:
      z, memory = run(solver, predict, z, grid, arrays.fold(keys, 2))
      return z, jnp.broadcast_to(evaluations(solver, grid, memory), len(keys))
    if section.threshold:
      z, steps, _ = descent.descend_until(solver, predict, z, max_steps=section.num_steps,
                                          threshold=section.threshold)
      return z, steps
    z = descent.descend(solver, predict, z, num_steps=section.num_steps)
    return z, jnp.full(len(keys), section.num_steps)

  return draw


def _solver(section, process, output, label_noise):
  """The solver of config.sample, and its grid of times, or None for a descent."""
  path = 'sample.solver'
  row = row_of({**SOLVERS, **DESCENTS}, section.solver, path)
  name, found = section.solver.name, numbers(row, section.solver, path)
  if name in DESCENTS:
    if label_noise is not fields.none:
      raise ValueError(
          f'config.{path}.name={name!r} descends a field that may not depend on time, but '
          f'config.model.label_noise is {arrays.name_of(label_noise)!r}: train with \'none\' or '
          f'sample with one of {sorted(SOLVERS)}')
    return row(**found), None
  if section.threshold:
    raise ValueError(f'config.sample.threshold={section.threshold}: only a descent '
                     f'({sorted(DESCENTS)}) stops by the norm of its field; set it to 0')
  grid = called(GRIDS, section.grid, 'sample.grid', num_steps=section.num_steps, process=process)
  with _naming('sample.grid'):
    times.check_grid(grid, process=process, output=output, label_noise=label_noise)
  with _naming(path):
    return row(process, output, **found), grid


@contextlib.contextmanager
def _naming(path):
  """A refusal of the library, with the section of the config that it is about."""
  try:
    yield
  except (ValueError, TypeError, ZeroDivisionError) as error:
    raise ValueError(f'config.{path}: {error}') from error
