"""The one compiled training step."""

from collections.abc import Callable
from typing import Any

import jax
from jax import numpy as jnp
from jax.sharding import Mesh
import optax

from eqflow import ema
from eqflow.training import nonfinite, sharding
from eqflow.training.train_state import TrainMetrics


def make_step(loss: Callable, optimizer: optax.GradientTransformation, share: Callable, mesh: Mesh,
              *, places: Any = None, accumulate: int = 1, measure: Callable | None = None,
              prepare: Callable | None = None, skip: bool = False, scaled: bool = False) -> Callable:
  """(state, metrics, batch) -> (state, metrics, health), compiled.

  health is [loss, norm of the gradient, norm of the new parameters, steps left out in a row]. The
  first three are finite, or the new state is none to keep; with `skip` it is the old one then, but
  for its place in the data and its count of such steps. `scaled` multiplies the loss before its
  gradient is taken, by what keeps float16's in range; it needs `skip`. A batch with 'asked' [devices],
  which processes fill with whether each is to stop, adds to health whether any is.

  `places` are the shardings of the state, as in the state that it is given; None: whole everywhere.

  loss(keys, params, batch, histogram) -> ([b], aux); share(step, examples, added) -> {name: share} of
  the new parameters in each average, examples counting those of this step. prepare(params) -> params
  comes before the gradient: the averages take what the optimizer makes of it, as it is.
  measure(histogram, t, losses) -> histogram, of the whole batch, where the density adapts. The
  gradient is the mean over `accumulate` microbatches, each spread over all devices.
  """
  if scaled and not skip:
    raise ValueError('scaled=True without skip=True: a scale is found by leaving out what overflows')

  def mean_loss(params, histogram, scale, keys, batch):
    losses, aux = loss(keys, params, batch, histogram)
    value, seen = losses.mean(), (aux['t'], losses) if measure else ()
    return value * scale if scaled else value, (value, aux['error'].mean(), seen)

  def gradient(params, histogram, scale, *given):
    (_, (value, error, seen)), grads = jax.value_and_grad(mean_loss, has_aux=True)(
        params, histogram, scale, *given)
    if scaled:
      grads = jax.tree.map(lambda g: g / scale, grads)
    return ((value, error), grads), seen

  def accumulated(params, histogram, scale, keys, batch):
    given = params, histogram, scale
    if accumulate == 1:
      return gradient(*given, keys, batch)
    # Microbatch j takes rows j, j + accumulate, ...: every device keeps its own rows.
    split = lambda a: jnp.moveaxis(a.reshape((-1, accumulate) + a.shape[1:]), 1, 0)
    join = lambda a: jnp.moveaxis(a, 0, 1).reshape(-1)
    def add(total, micro):
      means, seen = gradient(*given, *micro)
      return jax.tree.map(jnp.add, total, means), seen
    micros = jax.tree.map(split, (keys, batch))
    like, _ = jax.eval_shape(gradient, *given, *jax.tree.map(lambda a: a[0], micros))
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
    total, seen = jax.lax.scan(add, zeros, micros)
    return jax.tree.map(lambda a: a / accumulate, total), jax.tree.map(join, seen)

  def step(state, metrics, batch):
    # What layers hold their activations to.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return updated(state, metrics, batch)

  def updated(state, metrics, batch):
    asked = [batch['asked'].max()] if 'asked' in batch else []
    batch = {name: rows for name, rows in batch.items() if name != 'asked'}
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(state.seed), batch['index'])
    params = prepare(state.params) if prepare else state.params
    ((value, error), grads), seen = accumulated(params, state.histogram, state.guard.scale, keys, batch)
    norm = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, params)
    params = optax.apply_updates(params, updates)
    added = jnp.uint32(len(batch['index']))
    examples = state.examples + added
    new = state.replace(
        step=state.step + 1, examples=examples, params=params, opt_state=opt_state,
        # Examples of steps left out count with the next that is made, as where averages move rarely.
        emas=ema.move(state.emas, params, share(
            state.step, examples, added * jnp.uint32(1 + state.guard.row) if skip else added)),
        histogram=measure(state.histogram, *seen) if measure else state.histogram)
    means = TrainMetrics.single_from_model_output(loss=value, error=error, grad_norm=norm)
    met, health = metrics.merge(means), jnp.stack([value, norm, optax.tree.norm(params)])
    if skip:
      finite = jnp.isfinite(health).all()
      guard = nonfinite.counted(state.guard, finite)
      kept = nonfinite.chosen(finite, (new, met), (state, metrics))
      new, met = kept[0].replace(step=new.step, examples=examples, guard=(
          nonfinite.rescaled(guard, finite) if scaled else guard)), kept[1]
    return new, met, jnp.stack([*health, new.guard.row, *asked])

  # The old state's buffers become the new one's: it must not be read after the call.
  everywhere = sharding.replicated(mesh)
  return jax.jit(step, donate_argnums=(0, 1),
                 out_shardings=(everywhere if places is None else places, everywhere, everywhere))
