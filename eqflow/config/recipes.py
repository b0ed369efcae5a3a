"""ConfigDict -> functions.

A section of a config is {'name': row of a table, **the row's numbers}. What does not fit is refused
with a list of what exists, before anything compiles.
"""

from collections.abc import Callable
import functools
import inspect
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from ml_collections import ConfigDict
import numpy as np

from eqflow import (
    arrays, blind_spots, couplings, densities, ema, energies, fields, losses, outputs, weights)
from eqflow.arrays import Stream
from eqflow.config import samplings, schema
from eqflow.config.errors import ABSENT, ConfigError, naming
from eqflow.config.sections import bound, called, choose, needed, numbers, row_of
from eqflow.config.tables import (
    COUPLINGS, DENSITIES, DTYPES, ENERGIES, LABELS, MADE, MODELS, NESTED, OUTPUTS, POLICIES, PROCESSES,
    SCALES, SCHEDULES, WEIGHTS)
from eqflow.models import edm2, magnitude
from eqflow.training import optimizers


class Recipe(NamedTuple):
  """What a config means: pure functions, and the optimizer that they are trained with."""
  init: Callable        # key -> params
  rules: Any            # how parameters are cut over a mesh, as `placement` says
  network: Callable     # params -> Network, told time and scale as the config says
  energy: Callable | None   # params -> Energy, of which the network is the gradient; None: it is none
  loss: Callable        # (keys, params, batch, histogram) -> ([b], aux)
  optimizer: Any        # optax.GradientTransformation
  share: Callable       # (step, examples, added) -> {name of average: share of the new params}
  prepare: Callable | None   # params -> params at the start of every training step; None: as they are
  couple: Callable | None   # batch -> its eps [b, ...], on the host; None: drawn in the loss, or data
  sampling: samplings.Sampling
  draw: Callable        # (params, keys, labels) -> (x [b, ...], evaluations [b], norms [b])
  pair: Callable        # (params, keys, labels) -> (eps, x [b, ...], norms [b]), x by eps and label
  scale: float          # what the first loss is multiplied by before its gradient; 1: no loss is
  histogram: Any        # what an adaptive density starts from, and the state carries; or ()
  measure: Any          # (histogram, t [b], losses [b]) -> histogram, or None


def recipe(config: ConfigDict) -> Recipe:
  """Everything a run computes, from its config alone. Raises ValueError naming the key at fault."""
  schema.check(config)
  process = bound(PROCESSES, config.process, 'process', nested=NESTED, made=MADE)
  with naming('process'):
    blind_spots.check_grid([0.9, 0.1], process=process, output=outputs.v)
  output = bound(OUTPUTS, config.output, 'output', nested=NESTED)
  module = model(config.model, config.data.num_classes)
  scale_input = bound(SCALES, config.model.scale_input, 'model.scale_input')
  label_noise = bound(LABELS, config.model.label_noise, 'model.label_noise')

  uncertainty = magnitude.LogVariance(config.loss.uncertainty) if config.loss.uncertainty else None

  def init(key):
    z = jnp.zeros((1, *config.data.shape))
    label = jnp.zeros(1, jnp.int32) if config.data.num_classes else None
    params = module.init(key, z, jnp.zeros(1), label)['params']
    if uncertainty:
      # A network does not see what it has no layer for.
      [own] = arrays.fold(key[None], Stream.UNCERTAINTY)
      params = params | {'uncertainty': uncertainty.init(own, jnp.zeros(1))['params']}
    return params

  with naming('model'):
    jax.eval_shape(init, jax.random.key(0))

  def field(params, apply=module.apply, **given):
    return fields.conditioned(Partial(apply, {'params': params}, **given), process,
                              scale_input=scale_input, label_noise=label_noise)

  def log_variance(params):
    label = Partial(label_noise, process)
    return lambda t: uncertainty.apply({'params': params['uncertainty']}, label(t))

  def watched(variables, z, label, condition):
    y, kept = module.apply(variables, z, label, condition, mutable=['intermediates'])
    return y, kept['intermediates']['activations'][0]

  energy, network = _energy(config, field)
  sampling = samplings.sampling_of(config, network, process, output, label_noise)
  density = _density(config, process)
  return Recipe(
      init=init, rules=module.RULES, network=network, energy=energy,
      loss=_loss(config, _trained(config, network, field), process, output, density, label_noise,
                 watched=lambda params, keys: field(params, watched),
                 log_variance=log_variance if uncertainty else None),
      optimizer=_optimizer(config),
      share=_share(config), prepare=magnitude.normalized if isinstance(module, edm2.EDM2) else None,
      couple=_couple(config), sampling=sampling,
      draw=functools.partial(samplings.draw, sampling),
      pair=functools.partial(samplings.pair, sampling),
      scale=_scale(config), histogram=density.start, measure=density.measure)


def model(section: ConfigDict, num_classes: int) -> Any:
  """The flax module of config.model."""
  called_by = {'dtype': DTYPES, 'param_dtype': DTYPES, 'remat_policy': POLICIES}
  options = {k: choose(called_by[k], v, f'model.{k}') if k in called_by else v
             for k, v in section.items() if k not in ('name', 'scale_input', 'label_noise')}
  make = choose(MODELS, section.name, 'model.name')
  known = [k for k in inspect.signature(make).parameters if k not in ('parent', 'name')]
  for key in options:
    if key not in known or key == 'num_classes':
      raise ConfigError(f'model.{key}', section[key],
                        f'is not a number of {section.name!r}, which takes {sorted(known)}',
                        'set num_classes in config.data')
  missing = [key for key, required in needed(make).items() if required and key not in options]
  if missing:
    raise ConfigError('model', ABSENT, f'{section.name!r} also needs {missing}')
  return make(num_classes=num_classes, **options)


def _trained(config, network, field):
  """(params, keys) -> Network as it is trained: with dropout, where the model has any."""
  dropout = config.model.get('dropout', 0.0)
  if not dropout:
    return lambda params, keys: network(params)
  if config.energy.name != 'none' or config.loss.dispersive:
    raise ConfigError('model.dropout', dropout, 'cannot be combined with config.energy.name='
                      f'{config.energy.name!r} and config.loss.dispersive={config.loss.dispersive}: '
                      f'neither '
                      'an energy nor the dispersive loss supports dropout',
                      'use --config.model.dropout=0.0')
  return lambda params, keys: field(params, keys=arrays.fold(keys, Stream.DROPOUT))


def _energy(config, field):
  """(params -> Energy or None, params -> Network) of config.energy, and of params -> the field."""
  row = called(ENERGIES, config.get('energy'), 'energy')
  if row is None:
    return None, field
  name = config.energy.name
  if row is not energies.dot and not config.model.get('final_scale', 0.0):
    raise ConfigError('energy.name', name, 'never learns from config.model.final_scale=0.0: the '
                      'gradient '
                      'of |f|^2/2 is zero where f starts at zero',
                      'use --config.model.final_scale=0.02, or --config.energy.name=dot')
  if config.loss.dispersive:
    raise ConfigError('loss.dispersive', config.loss.dispersive, f'cannot be combined with '
                      f'config.energy.name={name!r}: the gradient of an energy exposes no activations',
                      'use --config.loss.dispersive=0.0, or --config.energy.name=none')
  return (lambda params: row(field(params)),
          lambda params: energies.energy_gradient(row(field(params))))


def _density(config, process):
  """The density of config.loss as an adaptive one; a fixed one has nothing to carry."""
  section, path = config.loss.density, 'loss.density'
  row = row_of(DENSITIES, section, path)
  found = numbers(row, section, path, process=process)
  with naming(path):
    density = row(**found)
  if isinstance(density, densities.Density):
    if config.loss.at_data:
      density = densities.with_data(density, config.loss.at_data)
    return densities.Adaptive(start=(), density=lambda histogram: density, measure=None)
  if row_of(WEIGHTS, config.loss.weight, 'loss.weight') is not weights.on_logsnr:
    raise ConfigError(
        'loss.weight.name', config.loss.weight.name, f'makes the objective depend on '
        f'config.{path}.name='
        f'{section.name!r}', 'use --config.loss.weight.name=on_logsnr')
  if config.loss.at_data:
    raise ConfigError('loss.at_data', config.loss.at_data, f'cannot be combined with '
                      f'config.{path}.name='
                      f'{section.name!r}, which has no t=0', 'use --config.loss.at_data=0.0')
  return density


def _loss(config, network, process, output, adaptive, label_noise, watched, log_variance):
  space = choose(OUTPUTS, config.loss.space, 'loss.space') if config.loss.space else None
  if space is not None and needed(space):
    raise ConfigError('loss.space', config.loss.space, 'must be an output without numbers: one of '
                      f'{sorted(k for k, row in OUTPUTS.items() if not needed(row))}')
  weigh = lambda density: bound(WEIGHTS, config.loss.weight, 'loss.weight', nested=NESTED,
                                density=density)
  first = adaptive.density(adaptive.start)
  weight, spread = weigh(first), config.loss.dispersive
  on_eps = space is outputs.eps or (space is None and output is outputs.eps)
  if row_of(WEIGHTS, config.loss.weight, 'loss.weight') is weights.on_logsnr and not on_eps:
    raise ConfigError('loss.space', config.loss.space, "must be 'eps' with config.loss.weight.name="
                      "'on_logsnr', which weights the error of eps", 'use --config.loss.space=eps')
  with naming('loss'):
    blind_spots.check_training(first, process=process, output=output, space=space, weight=weight,
                         label_noise=label_noise)
  drop, classes = config.train.drop_label, config.data.num_classes
  independent = _coupling(config) is couplings.independent
  predictor = watched if spread else network
  penalty = (lambda h: spread * losses.dispersive(h)) if spread else None

  def loss(keys, params, batch, histogram=adaptive.start):
    density, label = adaptive.density(histogram), None
    if classes:
      null = densities.draw(arrays.fold(keys, Stream.LABEL_DROP)) < drop
      label = jnp.where(null, classes, batch['label'])
    u = None
    if config.loss.stratified:
      u = densities.low_discrepancy(batch['index'], np.uint32(config.seed))
    coupling = couplings.independent if independent else Partial(couplings.given, eps=batch['eps'])
    return losses.matching_loss(
        keys, fields.bind(predictor(params, keys), label), batch['x'], process=process, output=output,
        density=density, u=u, coupling=coupling, space=space, weight=weigh(density),
        penalty=penalty, uncertainty=log_variance(params) if log_variance else None)

  return loss


def _scale(config):
  """2^16 for float16, whose gradients of a mean over pixels and batch are else rounded to zero."""
  if config.model.dtype != 'float16':
    return 1.0
  if not config.train.max_skipped:
    raise ConfigError('model.dtype', 'float16', 'needs config.train.max_skipped above 0: its loss '
                      'scale '
                      'adapts by skipping updates that overflow',
                      'use --config.train.max_skipped=20, or --config.model.dtype=bfloat16')
  return 2.0**16


def _coupling(config):
  """The row of config.loss.coupling. Raises ValueError where none is set, or the data have no pairs."""
  path = 'loss.coupling'
  row = row_of(COUPLINGS, config.loss.coupling, path)
  if row is couplings.given and config.data.name != 'pairs':
    raise ConfigError(f'{path}.name', config.loss.coupling.name, f'needs data with paired noise, but '
                      f'config.data.name={config.data.name!r}', 'use --config.data.name=pairs')
  return row


def _couple(config):
  path, row = 'loss.coupling', _coupling(config)
  found = numbers(row, config.loss.coupling, path, group=None, eps=None)
  if not found.get('regularization', 1) > 0:
    raise ConfigError(f'{path}.regularization', found['regularization'], 'must be above 0')
  if 'group' not in found:
    return None
  classes, parts = config.data.num_classes, config.train.accumulate

  @jax.jit
  def keys_of(index):
    # The keys that the step folds, and of them those that the loss would draw its noise from.
    return arrays.fold(arrays.example_keys(config.seed, index), Stream.NOISE)

  def couple(batch):
    x, eps = batch['x'], np.empty_like(batch['x'])
    keys = keys_of(batch['index'])
    # Microbatch j of the step has rows j, j + parts, ...
    for rows in (slice(j, None, parts) for j in range(parts)):
      with naming(path):
        eps[rows] = row(keys[rows], x[rows], **found | {
            'group': batch['label'][rows] if classes else None})
    return eps

  return couple


def _optimizer(config):
  section = config.optimizer
  shape = bound(SCHEDULES, section.schedule, 'optimizer.schedule',
                num_examples=config.train.num_examples)
  with naming('optimizer.schedule'):
    shape(jnp.float32(0))
  schedule = optimizers.learning_rate(
      rate=section.rate, shape=shape, warmup_examples=section.warmup_examples,
      batch=config.train.batch)
  return optimizers.adamw(schedule, b1=section.b1, b2=section.b2, eps=section.eps,
                          weight_decay=section.weight_decay, clip=section.clip)


def ema_names(config: ConfigDict) -> list[str]:
  """The averages that the run keeps, each called by its decay or its std as written."""
  names = [*map('{:g}'.format, config.ema.decays), *map(repr, config.ema.stds)]
  if len(set(names)) < len(names):
    raise ConfigError('ema.decays', tuple(config.ema.decays), 'and config.ema.stds='
                      f'{tuple(config.ema.stds)} give two EMAs the same name')
  return names


def _decays(config):
  return {f'{decay:g}': decay for decay in config.ema.decays}


def _powers(config):
  with naming('ema.stds'):
    return {repr(std): float(ema.power_from_std(std)) for std in config.ema.stds}


def _share(config):
  decays, powers, name = _decays(config), _powers(config), config.sample.params
  if name not in ('params', *decays, *powers) and not (powers and ema.is_std(name)):
    raise ConfigError('sample.params', name, f'must be one of {["params", *decays, *powers]}'
                      + (', or a std made by --mode=reconstruct' if powers else ''))

  def share(step, examples, added):
    return ({name: 1 - ema.warmed(decay, step) for name, decay in decays.items()}
            | {name: ema.power_rate(power, examples, added) for name, power in powers.items()})

  return share
