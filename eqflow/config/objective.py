"""config.loss: the training objective and its coupling of data with noise."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from ml_collections import ConfigDict
import numpy as np

from eqflow import arrays, blind_spots, couplings, densities, fields, losses, outputs, weights
from eqflow.arrays import Stream
from eqflow.config.errors import ConfigError, naming
from eqflow.config.networks import Architecture
from eqflow.config.sections import bound, choose, needed, numbers, row_of
from eqflow.config.tables import COUPLINGS, DENSITIES, NESTED, OUTPUTS, WEIGHTS
from eqflow.outputs import Output
from eqflow.processes import Process


class Objective(NamedTuple):
  """What config.loss means."""
  loss: Callable            # (keys, params, batch, histogram) -> ([b], aux)
  histogram: Any            # the initial state of an adaptive density; () for a fixed one
  measure: Callable | None  # (histogram, t [b], losses [b]) -> histogram, or None
  couple: Callable | None   # batch -> its eps [b, ...], on the host; None: sampled in the loss, or data
  scale: float              # the initial loss scale of float16; 1: the loss is not scaled


def build(config: ConfigDict, process: Process, output: Output, model: Architecture) -> Objective:
  """The objective of a config. Raises ConfigError."""
  density = _density(config, process)
  return Objective(loss=_loss(config, process, output, model, density), histogram=density.start,
                   measure=density.measure, couple=_couple(config), scale=_scale(config))


def _density(config, process):
  """The density of training times as an adaptive one; the state of a fixed one is empty."""
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
        'loss.weight.name', config.loss.weight.name, 'makes the objective depend on '
        f'config.{path}.name={section.name!r}', 'use --config.loss.weight.name=on_logsnr')
  if config.loss.at_data:
    raise ConfigError('loss.at_data', config.loss.at_data, 'cannot be combined with '
                      f'config.{path}.name={section.name!r}, which has no t=0',
                      'use --config.loss.at_data=0.0')
  return density


def _loss(config, process, output, model, adaptive):
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
                               label_noise=model.label_noise)
  drop, classes = config.train.drop_label, config.data.num_classes
  independent = _coupling(config) is couplings.independent
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
        keys, fields.bind(model.trained(params, keys), label), batch['x'], process=process,
        output=output, density=density, u=u, coupling=coupling, space=space, weight=weigh(density),
        penalty=penalty, uncertainty=model.log_variance(params) if model.log_variance else None)

  return loss


def _scale(config):
  """2^16 for float16, whose gradients of a mean over pixels and batch would underflow."""
  if config.model.dtype != 'float16':
    return 1.0
  if not config.train.max_skipped:
    raise ConfigError('model.dtype', 'float16', 'needs config.train.max_skipped above 0: its loss '
                      'scale adapts by skipping updates that overflow',
                      'use --config.train.max_skipped=20, or --config.model.dtype=bfloat16')
  return 2.0**16


def _coupling(config):
  path = 'loss.coupling'
  row = row_of(COUPLINGS, config.loss.coupling, path)
  if row is couplings.given and config.data.name != 'pairs':
    raise ConfigError(f'{path}.name', config.loss.coupling.name, 'needs data with paired noise, but '
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
    # The keys that the step folds, then the stream from which the loss would sample its noise.
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
