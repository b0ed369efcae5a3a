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

from eqflow import (
    arrays, couplings, descent, ema, fields, losses, outputs, samplers, times, weights)
from eqflow.names import (
    COUPLINGS, DENSITIES, DESCENTS, DTYPES, GRIDS, INTERVALS, LABELS, MADE, MODELS, NESTED, OUTPUTS,
    PROCESSES, SCALES, SCHEDULES, SOLVERS, WEIGHTS)
from eqflow.sections import bound, called, check_ranges, choose, needed, numbers, row_of
from eqflow.solver import evaluations, run
from eqflow.training import optimizer as optimizers

class Recipe(NamedTuple):
  """What a config means: pure functions, and the optimizer that they are trained with."""
  init: Callable        # key -> params
  network: Callable     # params -> Network, told time and scale as the config says
  loss: Callable        # (keys, params, batch, histogram) -> ([b], aux)
  optimizer: Any        # optax.GradientTransformation
  keep: Callable        # step -> {name of average: keep}
  couple: Callable | None   # batch -> its eps [b, ...], on the host; None: drawn in the loss, or data
  draw: Callable        # (params, keys, labels) -> ([b, ...], evaluations [b])
  pair: Callable        # (params, keys, labels) -> (eps, x [b, ...]), x a function of eps and label
  histogram: Any        # what an adaptive density starts from, and the state carries; or ()
  measure: Any          # (histogram, t [b], losses [b]) -> histogram, or None


def recipe(config: ConfigDict) -> Recipe:
  """Everything a run computes, from its config alone. Raises ValueError naming the key at fault."""
  check_ranges(config)
  process = bound(PROCESSES, config.process, 'process', nested=NESTED, made=MADE)
  with _naming('process'):
    times.check_grid([0.9, 0.1], process=process, output=outputs.v)
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

  draw, pair = _draws(config, network, process, output, label_noise)
  density = _density(config, process)
  return Recipe(
      init=init, network=network,
      loss=_loss(config, network, process, output, density),
      optimizer=_optimizer(config),
      keep=_keep(config), couple=_couple(config), draw=draw, pair=pair,
      histogram=density.start, measure=density.measure)


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


def _density(config, process):
  """The density of config.loss as an adaptive one; a fixed one has nothing to carry."""
  section, path = config.loss.density, 'loss.density'
  row = row_of(DENSITIES, section, path)
  found = numbers(row, section, path, process=process)
  with _naming(path):
    density = row(**found)
  if isinstance(density, times.Density):
    return times.Adaptive(start=(), density=lambda histogram: density, measure=None)
  if row_of(WEIGHTS, config.loss.weight, 'loss.weight') is not weights.on_logsnr:
    raise ValueError(
        f'config.loss.weight.name={config.loss.weight.name!r} with config.{path}.name='
        f"{section.name!r}: the objective would change with the density; choose 'on_logsnr'")
  return density


def _loss(config, network, process, output, adaptive):
  space = choose(OUTPUTS, config.loss.space, 'loss.space') if config.loss.space else None
  if space is not None and needed(space):
    raise ValueError(f'config.loss.space={config.loss.space!r} has numbers of its own: choose from '
                     f'{sorted(k for k, row in OUTPUTS.items() if not needed(row))}')
  weigh = lambda density: bound(WEIGHTS, config.loss.weight, 'loss.weight', nested=NESTED,
                                density=density)
  first = adaptive.density(adaptive.start)
  weigh(first)
  on_eps = space is outputs.eps or (space is None and output is outputs.eps)
  if row_of(WEIGHTS, config.loss.weight, 'loss.weight') is weights.on_logsnr and not on_eps:
    raise ValueError(f"config.loss.space={config.loss.space!r} with config.loss.weight.name="
                     "'on_logsnr', which weighs the error of eps: set config.loss.space='eps'")
  with _naming('loss'):
    times.check_training(first, process=process, output=output, space=space)
  drop, classes = config.train.drop_label, config.data.num_classes
  independent = _coupling(config) is couplings.independent

  def loss(keys, params, batch, histogram=adaptive.start):
    density, label = adaptive.density(histogram), None
    if classes:
      null = times.draw(arrays.fold(keys, 2)) < drop
      label = jnp.where(null, classes, batch['label'])
    u = None
    if config.loss.stratified:
      u = times.low_discrepancy(batch['index'], np.uint32(config.seed))
    coupling = couplings.independent if independent else Partial(couplings.given, eps=batch['eps'])
    return losses.matching_loss(
        keys, fields.bind(network(params), label), batch['x'], process=process, output=output,
        density=density, u=u, coupling=coupling, space=space, weight=weigh(density))

  return loss


def _coupling(config):
  """The row of config.loss.coupling. Raises ValueError where none is set, or the data have no pairs."""
  path = 'loss.coupling'
  if 'coupling' not in config.loss:
    raise ValueError(f"config.{path} is not set: write coupling=dict(name='independent')")
  row = row_of(COUPLINGS, config.loss.coupling, path)
  if row is couplings.given and config.data.name != 'pairs':
    raise ValueError(f'config.{path}.name={config.loss.coupling.name!r}, but config.data.name='
                     f"{config.data.name!r} has no noise of its own: set it to 'pairs'")
  return row


def _couple(config):
  path, row = 'loss.coupling', _coupling(config)
  found = numbers(row, config.loss.coupling, path, group=None, eps=None)
  if 'group' not in found:
    return None
  classes, parts = config.data.num_classes, config.train.accumulate

  @jax.jit
  def keys_of(index):
    # The keys that the step folds, and of them those that the loss would draw its noise from.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(np.uint32(config.seed)), index)
    return arrays.fold(keys, 1)

  def couple(batch):
    x, eps = batch['x'], np.empty_like(batch['x'])
    keys = keys_of(batch['index'])
    # Microbatch j of the step has rows j, j + parts, ...
    for rows in (slice(j, None, parts) for j in range(parts)):
      with _naming(path):
        eps[rows] = row(keys[rows], x[rows], **found | {
            'group': batch['label'][rows] if classes else None})
    return eps

  return couple


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


def _draws(config, network, process, output, label_noise):
  section = config.sample
  solver, grid = _solver(section, process, output, label_noise)
  predictor = _guidance(section, config.data.num_classes, process)
  start = process(jnp.float32(1.0 if grid is None else grid[0])).eps

  def noise(keys):
    return arrays.noise_like(keys, jnp.zeros((len(keys), *config.data.shape)))

  def carried(params, eps, keys, labels):
    z = arrays.combine((start, eps))
    predict = predictor(network(params), labels)
    if grid is not None:
      z, memory = run(solver, predict, z, grid, keys)
      return z, jnp.broadcast_to(evaluations(solver, grid, memory), len(labels))
    if section.threshold:
      z, steps, _ = descent.descend_until(solver, predict, z, max_steps=section.num_steps,
                                          threshold=section.threshold)
      return z, steps
    z = descent.descend(solver, predict, z, num_steps=section.num_steps)
    return z, jnp.full(len(labels), section.num_steps)

  def draw(params, keys, labels):
    return carried(params, noise(arrays.fold(keys, 0)), arrays.fold(keys, 2), labels)

  def pair(params, keys, labels):
    # Noise of its own: who trains on pairs is judged by samples from noise that is not among them.
    eps = noise(arrays.fold(keys, 3))
    # No keys: a solver that draws, and so makes no map of noise to data, refuses.
    return eps, carried(params, eps, None, labels)[0]

  return draw, pair


def _guidance(section, classes, process):
  """(network, labels) -> Predict: guided by class at config.sample.scale, in its interval."""
  interval = called(INTERVALS, section.interval, 'sample.interval')
  if interval:
    with _naming('sample.interval'):
      fields.check_interval(interval['low'], interval['high'])
  if section.scale != 1 and not classes:
    raise ValueError(f'config.sample.scale={section.scale} guides by class, but '
                     'config.data.num_classes=0: set it to 1')
  if interval and section.solver.name in DESCENTS:
    raise ValueError(f'config.sample.interval.name={section.interval.name!r}: a descent has no time '
                     "that guidance could be limited to; set it to 'always'")

  def predictor(network, labels):
    if not classes:
      return fields.bind(network, None)
    guided = fields.guided(network, labels, jnp.full_like(labels, classes), scale=section.scale,
                           rescale=section.rescale)
    if not interval or section.scale == 1:
      return guided
    return fields.on_interval(guided, fields.bind(network, labels), process=process, **interval)

  return predictor


def _solver(section, process, output, label_noise):
  """The solver of config.sample, and its grid of times, or None for a descent."""
  path = 'sample.solver'
  row = row_of({**SOLVERS, **DESCENTS}, section.solver, path)
  name = section.solver.name
  found = numbers(row, section.solver, path, nested=NESTED, num_steps=section.num_steps)
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
    _check_ends(grid, process)
  with _naming(path):
    solver = row(process, output, **found)
    samplers.check(solver, grid)
  return solver, grid


def _check_ends(grid, process):
  """Raises ValueError where a grid does not fall from noise all the way to data."""
  state = process(jnp.float32(grid[-1]))
  if grid[0] <= grid[-1] or not state.eps <= 0.1 * state.x:
    raise ValueError(f'times from {grid[0]:.4g} to {grid[-1]:.4g} do not end at data: samples fall '
                     'from noise to a time where sigma is a tenth of alpha at most, such as 0')


@contextlib.contextmanager
def _naming(path):
  """A refusal of the library, with the section of the config that it is about."""
  try:
    yield
  except (ValueError, TypeError, ZeroDivisionError) as error:
    raise ValueError(f'config.{path}: {error}') from error
