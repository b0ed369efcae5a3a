"""Trains a network in one compiled scan, for notebooks and small experiments."""

import functools
from typing import Any

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import optax

from eqflow import arrays, losses
from eqflow.fields import Network, Predict


def fit(model: Any, x: Any, *, process: Any, output: Any, density: Any, num_steps: int,
        batch: int = 128, rate: float = 2e-3, seed: int = 0,
        label: Any = None) -> tuple[Predict | Network, jax.Array]:
  """Trains with Adam and a cosine learning rate on `matching_loss`: (predict, loss of every step).

  x [n, ...] are the records, drawn with replacement. model is a flax module (z, t) -> y, or
  (z, t, label) -> y with labels [n].
  """
  params, loss = _fit(x, label, *arrays.pytree((process, output, density)), jnp.uint32(seed),
                      model=model, num_steps=num_steps, batch=batch, rate=rate)
  return Partial(model.apply, {'params': params}), loss


@functools.partial(jax.jit, static_argnames=('model', 'num_steps', 'batch', 'rate'))
def _fit(x, label, process, output, density, seed, *, model, num_steps, batch, rate):
  adam = optax.adam(optax.cosine_decay_schedule(rate, num_steps))
  start, draws = jax.random.split(jax.random.key(seed))
  condition = lambda rows: () if label is None else (label[rows],)
  params = model.init(start, x[:1], jnp.zeros(1), *condition(jnp.arange(1)))['params']

  def step(carry, i):
    params, state = carry
    pick, noise = jax.random.split(jax.random.fold_in(draws, i))
    rows, keys = jax.random.randint(pick, (batch,), 0, len(x)), jax.random.split(noise, batch)
    loss = lambda params: losses.matching_loss(
        keys, lambda z, t: model.apply({'params': params}, z, t, *condition(rows)), x[rows],
        process=process, output=output, density=density)[0].mean()
    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = adam.update(gradient, state)
    return (optax.apply_updates(params, updates), state), value

  (params, _), loss = jax.lax.scan(step, (params, adam.init(params)), jnp.arange(num_steps))
  return params, loss
