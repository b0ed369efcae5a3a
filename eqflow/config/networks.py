"""config.model and config.energy: the network as functions of its parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import numpy as jnp
from jax.tree_util import Partial
from ml_collections import ConfigDict

from eqflow import arrays, energies, fields
from eqflow.arrays import Data, Stream
from eqflow.config.errors import ConfigError
from eqflow.config.rows import bind
from eqflow.config.tables import C_NOISE, ENERGIES, MODELS, SCALES
from eqflow.models import dit, edm2, magnitude
from eqflow.processes import Process

# Sections of config.model that are not numbers of the network.
APART = 'scale_input', 'c_noise'


class Architecture(NamedTuple):
  """What config.model means: pure functions of the parameters."""
  init: Callable                  # key -> params
  rules: Any                      # how parameters are sharded over a mesh: see models/partitioning.py
  network: Callable               # params -> Network; without classes, it ignores labels
  energy: Callable | None         # params -> the Energy, if the network is its gradient, or None
  prepare: Callable | None        # params -> params at the start of every training step, or None
  trained: Callable               # (params, keys) -> Network in the loss: with dropout, or activations
  log_variance: Callable | None   # params -> t [b] -> the log variance of the loss [b], or None
  c_noise: Callable               # (process, t) -> the noise conditioning of the network


def build(config: ConfigDict, process: Process) -> Architecture:
  """The network of a config, on states of `process`."""
  classes, dropout = config.data.num_classes, config.model.get('dropout', 0.0)
  module = flax_module(config.model, classes)
  scale_input = bind(SCALES, config.model.scale_input, 'model.scale_input')
  c_noise = bind(C_NOISE, config.model.c_noise, 'model.c_noise')
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

  def field(params, apply=module.apply, **options):
    network = fields.conditioned(Partial(apply, {'params': params}, **options), process,
                                 scale_input=scale_input, c_noise=c_noise)
    return network if classes else Partial(classless, network=network)

  def with_activations(variables, z, c_noise, condition):
    y, kept = module.apply(variables, z, c_noise, condition, mutable=['intermediates'])
    return y, kept['intermediates']['activations'][0]

  of_field = bind(ENERGIES, config.energy, 'energy')
  energy = (lambda params: of_field(field(params))) if of_field else None
  network = (lambda params: energies.energy_gradient(energy(params))) if energy else field

  def trained(params, keys):
    if config.loss.dispersive:
      return field(params, with_activations)
    return field(params, keys=arrays.fold(keys, Stream.DROPOUT)) if dropout else network(params)

  def log_variance(params):
    return lambda t: uncertainty.apply({'params': params['uncertainty']}, c_noise(process, t))

  return Architecture(
      init, module.RULES, Partial(network), energy,
      magnitude.normalized if isinstance(module, edm2.EDM2) else None, trained,
      log_variance if uncertainty else None, c_noise)


def classless(z: Data, t: Any, condition: Any, *, network: Callable) -> Data:
  """network(z, t, None): a network without classes ignores the labels that it gets."""
  return network(z, t, None)


def flax_module(section: ConfigDict, num_classes: int) -> Any:
  """The flax module of config.model."""
  numbers = {key: value for key, value in section.items() if key not in APART}
  module = bind(MODELS, ConfigDict(numbers), 'model', num_classes=num_classes)
  if isinstance(module, dit.DiT) and module.width % module.heads:
    fits = max(n for n in range(1, module.heads) if module.width % n == 0)
    raise ConfigError('model.heads', module.heads, f'does not divide the width of {module.width}',
                      f'use {fits}')
  return module
