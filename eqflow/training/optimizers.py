"""Learning rates as functions of examples seen, and the optimizer that follows them."""

from collections.abc import Callable
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import PyTree
import optax

from eqflow.arrays import Number
from eqflow.models import embed


def constant(examples: Any, *, num_examples: int) -> Any:
  """1: the rate stays where warm-up brought it."""
  return jnp.ones_like(examples)


def cosine(examples: Any, *, num_examples: int) -> Any:
  """(1 + cos(pi examples/num_examples))/2, reaching 0 at the end of training."""
  return (1 + jnp.cos(jnp.pi * jnp.minimum(1.0, examples / num_examples))) / 2


def inverse_square_root(examples: Any, *, num_examples: int, decay_examples: Number,
                        rampup_examples: Number = 0.0) -> Any:
  """min(1, examples/rampup)/sqrt(max(1, examples/decay)) [Karras+ 2312.02696, section 2.3].

  With a ramp the first update has rate 0, unlike after `warmup_examples`, which are to be 0 then.
  Raises ValueError where decay_examples is not above 0, or rampup_examples below.
  """
  if decay_examples <= 0 or rampup_examples < 0:
    raise ValueError(f'decay_examples={decay_examples}, rampup_examples={rampup_examples}: both are '
                     'counts of examples, the first above 0')
  ramp = jnp.minimum(1.0, examples / rampup_examples) if rampup_examples else 1.0
  return ramp / jnp.sqrt(jnp.maximum(1.0, examples / decay_examples))


def learning_rate(*, rate: Number, shape: Callable, warmup_examples: int,
                  batch: int) -> optax.Schedule:
  """count -> rate shape(count batch) min(1, examples/warmup_examples), count the updates made."""
  def schedule(count):
    examples = count * float(batch)
    return rate * shape(examples) * jnp.minimum(1.0, (examples + batch) / max(warmup_examples, batch))
  return schedule


def adamw(schedule: optax.Schedule, *, b1: Number, b2: Number, eps: Number, weight_decay: Number,
          clip: Number) -> optax.GradientTransformation:
  """AdamW on the trainable parameters, after clipping the gradient to the global norm `clip`.

  clip = 0 does not clip. Fixed tables are left alone and have no optimizer state.
  """
  steps = [optax.clip_by_global_norm(clip)] if clip else []
  steps.append(optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay))
  def label(params: PyTree) -> PyTree:
    return jax.tree.map(lambda on: 'trainable' if on else 'fixed', embed.trainable(params))
  return optax.partition({'trainable': optax.chain(*steps), 'fixed': optax.set_to_zero()}, label)
