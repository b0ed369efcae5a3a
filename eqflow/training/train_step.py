"""The one compiled training step: a gradient, an update, and the rule for steps that are not finite."""

from collections.abc import Callable
from typing import Any

import jax
from jax import numpy as jnp
from jax.sharding import Mesh
import optax

from eqflow import arrays, ema
from eqflow.training import nonfinite, sharding


def gradient_of(loss: Callable, *, accumulate: int = 1, scaled: bool = False) -> Callable:
  """(params, histogram, scale, keys, batch) -> ((loss [], error []), gradient, (t [b], losses [b])).

  loss(keys, params, batch, histogram) -> (losses [b], aux). Takes the gradient of the mean of losses,
  in `accumulate` microbatches, each of them sharded over all devices. With `scaled` the loss is
  multiplied by `scale` before its gradient is taken, and the gradient divided by it.
  """
  def mean_loss(params, histogram, scale, keys, batch):
    losses, aux = loss(keys, params, batch, histogram)
    value = losses.mean()
    return value * scale if scaled else value, (value, aux['error'].mean(), (aux.get('t'), losses))

  def gradient(params, histogram, scale, keys, batch):
    (_, (value, error, seen)), grads = jax.value_and_grad(mean_loss, has_aux=True)(
        params, histogram, scale, keys, batch)
    if scaled:
      grads = jax.tree.map(lambda g: g / scale, grads)
    return (value, error), grads, seen

  def accumulated(params, histogram, scale, keys, batch):
    # Microbatch j takes rows j, j + accumulate, ...: every device keeps its own rows.
    split = lambda a: jnp.moveaxis(a.reshape((-1, accumulate) + a.shape[1:]), 1, 0)
    join = lambda a: jnp.moveaxis(a, 0, 1).reshape(-1)
    def add(total, micro):
      *means, seen = gradient(params, histogram, scale, *micro)
      return jax.tree.map(jnp.add, total, means), seen
    micros = jax.tree.map(split, (keys, batch))
    *like, _ = jax.eval_shape(gradient, params, histogram, scale, *jax.tree.map(lambda a: a[0], micros))
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
    total, seen = jax.lax.scan(add, zeros, micros)
    means, grads = jax.tree.map(lambda a: a / accumulate, total)
    return means, grads, jax.tree.map(join, seen)

  return gradient if accumulate == 1 else accumulated


def make_step(gradient: Callable, optimizer: optax.GradientTransformation, rates: Callable, mesh: Mesh,
              *, places: Any = None, measure: Callable | None = None, prepare: Callable | None = None,
              skip: Callable | None = None) -> Callable:
  """(state, batch) -> (state, Health), compiled; the state is donated.

  gradient: of `gradient_of`
  rates(step, examples, added) -> {name: EMA rate}; examples includes this step
  places: the shardings of the state; None: replicated
  measure(histogram, t, losses) -> histogram, for an adaptive density
  prepare(params) -> params, before the gradient is taken; the EMAs track the parameters after the
    optimizer step, which are not prepared again
  skip(guard, finite) -> guard: `nonfinite.counted`, or `nonfinite.rescaled` for a scaled gradient. If
    any number in Health is not finite, the step only advances the position in the data and the guard.
    None: such a step returns a state that is not finite, and must be discarded
  """
  def update(state, grads, params, seen, added, measured):
    """The state after one optimizer step from `params`, which saw `added` examples."""
    updates, opt_state = optimizer.update(grads, state.opt_state, params)
    params = optax.apply_updates(params, updates)
    examples = state.examples + added
    # Examples of skipped steps count with the next finite one, as if averages moved less often.
    moved = added * jnp.uint32(1 + state.guard.skipped_in_a_row) if skip else added
    return state.replace(
        step=state.step + 1, examples=examples, params=params, opt_state=opt_state,
        emas=ema.update(state.emas, params, rates(state.step, examples, moved)),
        histogram=measure(state.histogram, *seen) if measure else state.histogram,
        sums={name: state.sums[name] + value for name, value in measured.items()})

  def step(state, batch):
    keys = arrays.example_keys(state.seed, batch['index'])
    params = prepare(state.params) if prepare else state.params
    (loss, error), grads, seen = gradient(params, state.histogram, state.guard.scale, keys, batch)
    grad_norm = optax.tree.norm(grads)
    measured = dict(steps=1, loss=loss, error=error, grad_norm=grad_norm)
    new = update(state, grads, params, seen, jnp.uint32(len(batch['index'])), measured)
    numbers = loss, grad_norm, optax.tree.norm(new.params)
    if skip:
      finite = jnp.isfinite(jnp.stack(numbers)).all()
      kept = nonfinite.chosen(finite, new, state)
      new = kept.replace(step=new.step, examples=new.examples, guard=skip(state.guard, finite))
    row = jnp.float32(new.guard.skipped_in_a_row)
    return new, nonfinite.Health(*numbers, row)

  def on_mesh(state, batch):
    # Layers constrain their activations to this mesh.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return step(state, batch)

  everywhere = sharding.replicated(mesh)
  return jax.jit(on_mesh, donate_argnums=0,
                 out_shardings=(everywhere if places is None else places, everywhere))
