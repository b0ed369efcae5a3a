"""config.model and config.energy: the network as functions of its parameters."""

from collections.abc import Callable
import inspect
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from ml_collections import ConfigDict

from eqflow import arrays, energies, fields
from eqflow.arrays import Data, Stream
from eqflow.config.errors import ABSENT, ConfigError, naming
from eqflow.config.sections import bound, called, choose, needed
from eqflow.config.tables import DTYPES, ENERGIES, LABELS, MODELS, POLICIES, SCALES
from eqflow.models import edm2, magnitude
from eqflow.processes import Process


class Architecture(NamedTuple):
  """What config.model means: pure functions of the parameters."""
  init: Callable                  # key -> params
  rules: Any                      # how parameters are sharded over a mesh: see models/partitioning.py
  network: Callable               # params -> Network; without classes, it ignores labels
  energy: Callable | None         # params -> the Energy whose gradient the network is, or None
  prepare: Callable | None        # params -> params at the start of every training step, or None
  trained: Callable               # (params, keys) -> Network in the loss: with dropout, or activations
  log_variance: Callable | None   # params -> t [b] -> the log variance of the loss [b], or None
  label_noise: Callable           # (process, t) -> the noise label that the network receives


def build(config: ConfigDict, process: Process) -> Architecture:
  """The network of a config, on states of `process`. Raises ConfigError."""
  classes, dropout = config.data.num_classes, config.model.get('dropout', 0.0)
  module = flax_module(config.model, classes)
  scale_input = bound(SCALES, config.model.scale_input, 'model.scale_input')
  label_noise = bound(LABELS, config.model.label_noise, 'model.label_noise')
  uncertainty = magnitude.LogVariance(config.loss.uncertainty) if config.loss.uncertainty else None

  def init(key):
    z = jnp.zeros((1, *config.data.shape))
    label = jnp.zeros(1, jnp.int32) if classes else None
    params = module.init(key, z, jnp.zeros(1), label)['params']
    if uncertainty:
      # Next to the network's own parameters, which do not change with it.
      [own] = arrays.fold(key[None], Stream.UNCERTAINTY)
      params = params | {'uncertainty': uncertainty.init(own, jnp.zeros(1))['params']}
    return params

  with naming('model'):
    jax.eval_shape(init, jax.random.key(0))

  def field(params, apply=module.apply, **options):
    network = fields.conditioned(Partial(apply, {'params': params}, **options), process,
                                 scale_input=scale_input, label_noise=label_noise)
    return network if classes else Partial(classless, network=network)

  def with_activations(variables, z, label, condition):
    y, kept = module.apply(variables, z, label, condition, mutable=['intermediates'])
    return y, kept['intermediates']['activations'][0]

  energy = _energy(config, field)
  network = (lambda params: energies.energy_gradient(energy(params))) if energy else field

  def trained(params, keys):
    if config.loss.dispersive:
      return field(params, with_activations)
    return field(params, keys=arrays.fold(keys, Stream.DROPOUT)) if dropout else network(params)

  def log_variance(params):
    return lambda t: uncertainty.apply({'params': params['uncertainty']}, label_noise(process, t))

  if dropout and (energy or config.loss.dispersive):
    raise ConfigError('model.dropout', dropout, f'cannot be combined with config.energy.name='
                      f'{config.energy.name!r} and config.loss.dispersive={config.loss.dispersive}: '
                      'neither an energy nor the dispersive loss supports dropout',
                      'use --config.model.dropout=0.0')
  return Architecture(
      init, module.RULES, Partial(network), energy,
      magnitude.normalized if isinstance(module, edm2.EDM2) else None, trained,
      log_variance if uncertainty else None, label_noise)


def classless(z: Data, t: Any, condition: Any, *, network: Callable) -> Data:
  """network(z, t, None): a network without classes, where labels are passed to all."""
  return network(z, t, None)


def flax_module(section: ConfigDict, num_classes: int) -> Any:
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


def _energy(config, field):
  """params -> Energy of config.energy, or None."""
  row = called(ENERGIES, config.energy, 'energy')
  if row is None:
    return None
  name = config.energy.name
  if row is not energies.dot and not config.model.get('final_scale', 0.0):
    raise ConfigError('energy.name', name, 'never learns from config.model.final_scale=0.0: '
                      'the gradient of |f|^2/2 is zero where f starts at zero',
                      'use --config.model.final_scale=0.02, or --config.energy.name=dot')
  if config.loss.dispersive:
    raise ConfigError('loss.dispersive', config.loss.dispersive, f'cannot be combined with '
                      f'config.energy.name={name!r}: the gradient of an energy exposes no activations',
                      'use --config.loss.dispersive=0.0, or --config.energy.name=none')
  return lambda params: row(field(params))
