"""Averages of the parameters along training, as extra parameter trees: {name: tree}.

`update` is the one rule, mean <- keep mean + (1 - keep) params; what a name stands for is the
`keep` it is given at each step.
"""

from collections.abc import Mapping
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PyTree


def init(params: PyTree, names: Any) -> dict[str, PyTree]:
  """Every average starts at the parameters themselves."""
  return {name: jax.tree.map(jnp.copy, params) for name in names}


def update(emas: Mapping[str, PyTree], params: PyTree,
           keep: Mapping[str, ArrayLike]) -> dict[str, PyTree]:
  """mean + (1 - keep) (params - mean), for each average with its own keep in [0, 1]."""
  def average(mean, keep):
    return jax.tree.map(lambda m, p: m + ((1 - keep) * (p - m)).astype(m.dtype), mean, params)
  return {name: average(mean, keep[name]) for name, mean in emas.items()}


def warmed(decay: ArrayLike, num_updates: Int[ArrayLike, '']) -> Float[Array, '']:
  """min(decay, (1 + n)/(10 + n)): a decay that forgets the initial parameters soon.

  Without it an average of decay 0.999 still holds 5 % of its start after 3,000 updates.
  """
  return jnp.minimum(decay, (1 + num_updates) / (10 + num_updates))
