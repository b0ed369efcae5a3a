"""The train state: all that a checkpoint holds."""

from collections.abc import Callable
from typing import Any

import flax
import jax
from jax import numpy as jnp
from jax.sharding import Mesh
import optax

from eqflow import ema
from eqflow.arrays import Number
from eqflow.training import nonfinite, sharding


@flax.struct.dataclass
class TrainState:
  """Everything that a run needs to resume, and that a checkpoint holds."""
  seed: Any        # uint32; every key is folded from it, so none is stored
  step: Any        # int32, steps made, skipped ones included
  examples: Any    # uint32, examples seen: the position in the data
  params: Any
  opt_state: Any
  emas: Any        # {name: tree like params}
  histogram: Any = ()   # of losses, for an adaptive density
  guard: Any = ()       # nonfinite.Guard: skipped steps and the loss scale
  sums: Any = ()        # of the steps since the last line of the log, see `no_sums`


# What a line of the log has the mean of.
LOGGED = 'loss', 'error', 'grad_norm'


def no_sums() -> dict[str, Any]:
  """The sums of no steps: how many there are, skipped ones excluded, and the sum of each of LOGGED.

  They are part of the state, so that the log does not depend on restarts.
  """
  return {'steps': jnp.int32(0), **{name: jnp.float32(0) for name in LOGGED}}


def means(state: TrainState) -> dict[str, float]:
  """The means of LOGGED over the steps since the last line of the log; NaN if all were skipped."""
  return {name: float(state.sums[name] / state.sums['steps']) for name in LOGGED}


def create(init: Callable, optimizer: optax.GradientTransformation, names: Any, seed: int,
           mesh: Mesh, *, rules: sharding.Rules = (), histogram: Any = (), scale: Number = 1.0,
           abstract: bool = False) -> TrainState:
  """A new state, created on the devices: params = init(key(seed)), and the EMAs `names` equal to them.

  Every leaf is sharded over the mesh by the rules. `scale` is the initial loss scale. If abstract, only
  shapes and shardings.
  """
  def make(seed):
    params = init(jax.random.key(seed))
    return TrainState(seed=seed, step=jnp.int32(0), examples=jnp.uint32(0), params=params,
                      opt_state=optimizer.init(params), emas=ema.init(params, names),
                      histogram=jax.tree.map(jnp.asarray, histogram), guard=nonfinite.start(scale),
                      sums=no_sums())
  like = jax.eval_shape(make, jnp.uint32(seed))
  places = sharding.of(like, rules, mesh)
  if abstract:
    return jax.tree.map(
        lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), like, places)
  return jax.jit(make, out_shardings=places)(jnp.uint32(seed))


def logged(state: TrainState) -> TrainState:
  """The state after a line of the log: its sums start again."""
  everywhere = jax.tree.leaves(state.sums)[0].sharding
  return state.replace(sums=jax.jit(no_sums, out_shardings=everywhere)())


def parameters(state: TrainState, name: str) -> Any:
  """The parameters called `name`: 'params', the raw ones, or an EMA."""
  return state.params if name == 'params' else state.emas[name]


def called(name: str) -> str:
  """How the parameters called `name` are printed: 'params', or 'ema 0.999' for a decay of 0.999."""
  return name if name == 'params' else f'ema {name}'
