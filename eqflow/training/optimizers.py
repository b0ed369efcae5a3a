"""Learning rate schedules as functions of the examples seen, and the optimizer."""

from collections.abc import Callable
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import PyTree
import optax

from eqflow.arrays import Number
from eqflow.models import embed


def constant(examples: Any) -> Any:
  """1: a constant rate after the warm-up."""
  return jnp.ones_like(examples)


def cosine(examples: Any, *, num_examples: Number) -> Any:
  """(1 + cos(pi examples/num_examples))/2, reaching 0 at the end of training."""
  return (1 + jnp.cos(jnp.pi * jnp.minimum(1.0, examples / num_examples))) / 2


def inverse_square_root(examples: Any, *, decay_examples: Number, rampup_examples: Number = 0.0) -> Any:
  """min(1, examples/rampup)/sqrt(max(1, examples/decay)) [Karras+ 2312.02696, section 2.3].

  With rampup_examples the first update has rate 0, unlike with `warmup_examples`; use one of the two.
  Raises ValueError unless decay_examples > 0 and rampup_examples >= 0.
  """
  if decay_examples <= 0 or rampup_examples < 0:
    raise ValueError(f'decay_examples={decay_examples}, rampup_examples={rampup_examples}: give a '
                     'number of examples above 0, and one of at least 0')
  ramp = jnp.minimum(1.0, examples / rampup_examples) if rampup_examples else 1.0
  return ramp / jnp.sqrt(jnp.maximum(1.0, examples / decay_examples))


def learning_rate(*, rate: Number, shape: Callable, warmup_examples: int,
                  batch: int) -> optax.Schedule:
  """count -> rate shape(count batch) min(1, examples/warmup_examples), with count updates made."""
  def schedule(count):
    examples = count * float(batch)
    return rate * shape(examples) * jnp.minimum(1.0, (examples + batch) / max(warmup_examples, batch))
  return schedule


def adamw(schedule: optax.Schedule, *, b1: Number, b2: Number, eps: Number, weight_decay: Number,
          clip: Number) -> optax.GradientTransformation:
  """AdamW on the trainable parameters, after clipping the gradient to the global norm `clip` (0: not).

  Fixed tables are not updated and have no optimizer state.
  """
  steps = [optax.clip_by_global_norm(clip)] if clip else []
  steps.append(optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay))
  def label(params: PyTree) -> PyTree:
    return jax.tree.map(lambda on: 'trainable' if on else 'fixed', embed.trainable(params))
  return optax.partition({'trainable': optax.chain(*steps), 'fixed': optax.set_to_zero()}, label)
