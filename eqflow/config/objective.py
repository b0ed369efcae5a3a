"""config.loss: the training objective and its coupling of data with noise."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from ml_collections import ConfigDict
import numpy as np

from eqflow import arrays, couplings, densities, fields, losses
from eqflow.arrays import Stream
from eqflow.config.errors import naming
from eqflow.config.networks import Architecture
from eqflow.config.rows import bind, checked
from eqflow.config.tables import COUPLINGS, DENSITIES, SPACES, WEIGHTS
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
  """The objective of a config."""
  density = density_of(config, process)
  return Objective(
      loss=_loss(config, process, output, model, density), histogram=density.start,
      measure=density.measure, couple=_couple(config),
      # The gradients of a mean over pixels and batch underflow in float16.
      scale=2.0**16 if config.model.dtype == 'float16' else 1.0)


def density_of(config: ConfigDict, process: Process) -> densities.Adaptive:
  """The density of training times as an adaptive one; the state of a fixed one is empty."""
  density = bind(DENSITIES, config.loss.density, 'loss.density', process=process)
  if isinstance(density, densities.Adaptive):
    return density
  if config.loss.at_data:
    density = densities.with_data(density, config.loss.at_data)
  return densities.Adaptive(start=(), density=lambda histogram: density, measure=None)


def space_of(config: ConfigDict) -> Output | None:
  """The output in which the loss is measured; None: the network's own."""
  return SPACES[config.loss.space] if config.loss.space else None


def weight_of(config: ConfigDict, density: densities.Density) -> Callable:
  """(process, t) -> the weight of the loss, for times of the density."""
  return bind(WEIGHTS, config.loss.weight, 'loss.weight', density=density)


def _loss(config, process, output, model, adaptive):
  space, spread = space_of(config), config.loss.dispersive
  drop, classes = config.train.drop_label, config.data.num_classes
  independent = config.loss.coupling.name == 'independent'
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
        output=output, density=density, u=u, coupling=coupling, space=space,
        weight=weight_of(config, density), penalty=penalty,
        uncertainty=model.log_variance(params) if model.log_variance else None)

  return loss


def _couple(config):
  path = 'loss.coupling'
  row, numbers = checked(COUPLINGS, config.loss.coupling, path)
  if 'group' not in row.received:
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
        eps[rows] = row.function(keys[rows], x[rows], **numbers,
                                 group=batch['label'][rows] if classes else None)
    return eps

  return couple
