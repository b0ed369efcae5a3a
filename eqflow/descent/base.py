"""Descent(init, step, traits): a way to follow a field downhill, and schedules of its step size.

    init(z) -> state
    step(field, z, state, keys) -> (z, state)            field(z) is the slope, like z

A descent has no time. The state has the iteration count [b] and the last slope; all its leaves have a
leading [b], so that samples never couple. keys are [b], new at every iteration, or None.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Num

from eqflow import arrays
from eqflow.arrays import Data
from eqflow.samplers import Traits

# Iterations made [b] -> the factor of the step size [b].
Schedule = Callable[[Int[Array, 'b']], ArrayLike]


class State(NamedTuple):
  """Iterations made [b], the field where it was last evaluated, and what else a method keeps.

  A step returns `count` + 1: schedules and the loops of a descent go by it.
  """
  count: Int[Array, 'b']
  slope: Data
  inner: Any = ()


class Descent(NamedTuple):
  """Pure functions, like an optax transform, for any number of samples at once."""
  init: Callable[[Data], State]
  step: Callable[..., tuple[Data, State]]
  traits: Traits = Traits('custom')


def at_start(z: Data) -> State:
  """The state of a descent that keeps its count and slope alone, before the first iteration."""
  return State(jnp.zeros(arrays.batch_size(z), int), jax.tree.map(jnp.zeros_like, z))


def evaluations(descent: Descent, iterations: Any) -> Any:
  """How often the field is evaluated in so many iterations: once each, twice by heun."""
  return iterations * descent.traits.stages


def constant(k: Num[ArrayLike, '*b']) -> ArrayLike:
  """1: the step size as it is."""
  return 1.0


def cosine(k: Num[ArrayLike, '*b'], *, num_steps: ArrayLike) -> Float[Array, '*b']:
  """(1 + cos(pi k/num_steps))/2, from 1 at the first iteration to 0 at k = num_steps and after."""
  return (1 + jnp.cos(jnp.pi * jnp.minimum(k / num_steps, 1))) / 2


def harmonic(k: Num[ArrayLike, '*b'], *, half: ArrayLike) -> Float[Array, '*b']:
  """1/(1 + k/half): the sum of the steps diverges, the sum of their squares does not."""
  return 1 / (1 + k / half)
