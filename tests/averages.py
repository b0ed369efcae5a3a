"""Averages of known parameters, for the tests of ema and posthoc_ema."""

import jax
from jax import numpy as jnp
import numpy as np

from eqflow import ema


def track(stds, updates, *, batch, every, params, chunks=1):
  """The averages {std: [chunks, ...]} of params(examples, update), at the end of each chunk."""
  average = ema.power_average(stds)
  def update(state, k):
    examples = (k + 1) * batch * every
    return average.update(state, params(examples, k), examples), None
  def chunk(state, ks):
    state, _ = jax.lax.scan(update, state, ks)
    return state, state.means
  # A start unlike any parameter: any rest of it would show.
  start = average.init(jnp.full_like(params(jnp.uint32(1), jnp.uint32(0)), 7))
  ks = jnp.arange(updates, dtype=jnp.uint32).reshape(chunks, -1)
  means = jax.jit(lambda: jax.lax.scan(chunk, start, ks)[1])()
  return {float(name): np.asarray(mean) for name, mean in means.items()}


def basis(updates):
  """The parameters at update k: the k-th basis vector, so that an average is its own profile."""
  return lambda examples, k: (jnp.arange(updates, dtype=jnp.uint32) == k).astype(float)
