"""The train state: all that a checkpoint holds."""

from collections.abc import Callable
from typing import Any

from clu import metrics as clu_metrics
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


@flax.struct.dataclass
class TrainMetrics(clu_metrics.Collection):
  """Means over the steps since the last line of the log, without skipped steps."""
  loss: clu_metrics.Average.from_output('loss')
  error: clu_metrics.Average.from_output('error')
  grad_norm: clu_metrics.Average.from_output('grad_norm')


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
                      histogram=jax.tree.map(jnp.asarray, histogram), guard=nonfinite.start(scale))
  like = jax.eval_shape(make, jnp.uint32(seed))
  places = sharding.of(like, rules, mesh)
  if abstract:
    return jax.tree.map(
        lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), like, places)
  return jax.jit(make, out_shardings=places)(jnp.uint32(seed))


def empty_metrics(mesh: Mesh) -> TrainMetrics:
  """Metrics of no steps, sharded like those that a step returns."""
  return jax.jit(TrainMetrics.empty, out_shardings=sharding.replicated(mesh))()


def parameters(state: TrainState, name: str) -> Any:
  """The parameters called `name`: 'params', the raw ones, or an EMA."""
  return state.params if name == 'params' else state.emas[name]


def called(name: str) -> str:
  """How the parameters called `name` are printed: 'params', or 'ema 0.999' for a decay of 0.999."""
  return name if name == 'params' else f'ema {name}'
