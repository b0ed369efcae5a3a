"""ConfigDict -> Recipe: everything that a run computes, as pure functions.

A section of a config is {'name': row of a table, **the row's numbers}. Every key is checked before
anything compiles.
"""

from typing import NamedTuple

from jax import numpy as jnp
from ml_collections import ConfigDict
import optax

from eqflow import blind_spots, outputs
from eqflow.config import averages, networks, objective, sampling, schema
from eqflow.config.errors import naming
from eqflow.config.sections import bound
from eqflow.config.tables import MADE, NESTED, OUTPUTS, PROCESSES, SCHEDULES
from eqflow.training import optimizers


class Recipe(NamedTuple):
  """What a config means, one part for each group of sections."""
  model: networks.Architecture           # config.model, config.energy
  objective: objective.Objective         # config.loss
  sampling: sampling.Sampling            # config.sample
  optimizer: optax.GradientTransformation
  averages: averages.Averages            # config.ema


def recipe(config: ConfigDict) -> Recipe:
  """The recipe of a config. Raises ConfigError with the key that cannot run."""
  schema.check(config)
  process = bound(PROCESSES, config.process, 'process', nested=NESTED, made=MADE)
  with naming('process'):
    blind_spots.check_grid([0.9, 0.1], process=process, output=outputs.v)
  output = bound(OUTPUTS, config.output, 'output', nested=NESTED)
  model = networks.build(config, process)
  return Recipe(model=model,
                sampling=sampling.build(config, process, output, model),
                objective=objective.build(config, process, output, model),
                optimizer=_optimizer(config), averages=averages.build(config))


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
