"""ConfigDict -> Recipe: everything that a run computes, as pure functions.

First each key is checked alone (schema), then the five parts are made, then what no two sections may
say together is checked (consistency): all before anything compiles.
"""

from typing import NamedTuple

from jax import numpy as jnp
from ml_collections import ConfigDict
import optax

from eqflow import blind_spots, outputs
from eqflow.config import averages, consistency, networks, objective, sampling, schema
from eqflow.config.errors import naming
from eqflow.config.rows import bind
from eqflow.config.tables import OUTPUTS, PROCESSES, SCHEDULES
from eqflow.training import optimizers


class Recipe(NamedTuple):
  """What a config means, one part for each group of sections."""
  model: networks.Architecture           # config.model, config.energy
  objective: objective.Objective         # config.loss
  sampling: sampling.Sampling            # config.sample
  optimizer: optax.GradientTransformation
  rate: optax.Schedule                   # updates made -> learning rate
  averages: averages.Averages            # config.ema


def recipe(config: ConfigDict) -> Recipe:
  """The recipe of a config. Raises ConfigError with the key that cannot run."""
  schema.check(config)
  process = bind(PROCESSES, config.process, 'process')
  with naming('process'):
    blind_spots.check_grid([0.9, 0.1], process=process, output=outputs.v)
  output = bind(OUTPUTS, config.output, 'output')
  model = networks.build(config, process)
  rate = _rate(config)
  made = Recipe(model=model,
                objective=objective.build(config, process, output, model),
                sampling=sampling.build(config, process, output),
                optimizer=_optimizer(config, rate), rate=rate,
                averages=averages.build(config))
  consistency.check(config, made.model, made.sampling, output)
  return made


def _rate(config):
  section = config.optimizer
  shape = bind(SCHEDULES, section.schedule, 'optimizer.schedule',
                num_examples=float(config.train.num_examples))
  with naming('optimizer.schedule'):
    shape(jnp.float32(0))
  return optimizers.learning_rate(
      rate=section.rate, shape=shape, warmup_examples=section.warmup_examples,
      batch=config.train.batch)


def _optimizer(config, rate):
  section = config.optimizer
  return optimizers.adamw(rate, b1=section.b1, b2=section.b2, eps=section.eps,
                          weight_decay=section.weight_decay, clip=section.clip)
