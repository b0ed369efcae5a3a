"""config.sample: how samples are generated, by which solver, grid of times and guidance."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax import numpy as jnp
from jax.tree_util import Partial
from ml_collections import ConfigDict
import numpy as np

from eqflow import arrays, descent, fields, guidance, samplers
from eqflow.arrays import Data, Keys, Number, Stream
from eqflow.config.errors import naming
from eqflow.config.rows import bind
from eqflow.config.tables import DESCENTS, GRIDS, INTERVALS, SOLVERS
from eqflow.fields import Model, Predict
from eqflow.outputs import Output
from eqflow.processes import Process


class Sampling(NamedTuple):
  """What config.sample means. Samples are functions of their keys and labels.

  `models` has the model that is sampled, then the one that it is guided away from, if any.
  """
  process: Process
  solver: Any               # a Solver, or a Descent
  grid: Any                 # times from noise to data, or None for a descent
  noise: Callable           # keys -> eps [b, ...]
  predictor: Callable       # (models, labels) -> Predict, guided as config.sample says
  integrate: Callable       # (predict, z, keys, grid) -> (z, evaluations [b], norms [b])
  refill: Callable | None   # (network, z, labels, keys, slots) -> as `integrate`; None: no threshold

  @property
  def start(self) -> float:
    """The time at which samples start: the grid's first, and 1 for a descent."""
    return 1.0 if self.grid is None else float(self.grid[0])

  def pure_noise(self, eps: Data) -> Data:
    """sigma eps at the start."""
    return arrays.combine((self.process(jnp.float32(self.start)).eps, eps))

  def generate(self, models: Sequence[Model], keys: Keys, labels: Any) -> tuple[Data, Any, Any]:
    """(x [b, ...], evaluations [b], norms [b]) from noise.

    The norms are norms of the field if a threshold stops a descent, else NaN.
    """
    predict = self.predictor(models, labels)
    z = self.pure_noise(self.noise(arrays.fold(keys, Stream.START)))
    return self.integrate(predict, z, arrays.fold(keys, Stream.SOLVER), self.grid)

  def generate_refilled(self, models: Sequence[Model], keys: Keys, labels: Any, *,
                        slots: int) -> tuple[Data, Any, Any]:
    """`generate` of n samples in `slots` slots: a converged sample's slot is refilled."""
    network = Partial(_network, models=models, predictor=arrays.Static(self.predictor))
    z = self.pure_noise(self.noise(arrays.fold(keys, Stream.START)))
    return self.refill(network, z, labels, arrays.fold(keys, Stream.SOLVER), slots)

  def pair(self, models: Sequence[Model], keys: Keys, labels: Any) -> tuple[Data, Data, Any]:
    """(eps, x [b, ...], norms [b]): noise and the sample that it becomes."""
    # A stream of its own: models trained on these pairs are evaluated on unseen noise.
    eps = self.noise(arrays.fold(keys, Stream.PAIRS))
    # No keys: a stochastic solver defines no map from noise to data, and raises.
    x, _, norms = self.integrate(self.predictor(models, labels), self.pure_noise(eps), None, self.grid)
    return eps, x, norms


def _network(z, t, labels, *, models, predictor):
  return predictor.value(models, labels)(z, t)


def build(config: ConfigDict, process: Process, output: Output) -> Sampling:
  """The sampling of a config."""
  section, path, grid = config.sample, 'sample.solver', None
  if section.solver.name in DESCENTS:
    solver = bind(DESCENTS, section.solver, path)
  else:
    solver = bind(SOLVERS, section.solver, path, process=process, output=output,
                  num_steps=section.num_steps)
    grid = bind(GRIDS, section.grid, 'sample.grid', num_steps=section.num_steps,
                process=process)

  def noise(keys):
    return arrays.noise_like(keys, jnp.zeros((len(keys), *config.data.shape)))

  def integrate(predict, z, keys, grid):
    b = arrays.batch_size(z)
    if grid is not None:
      z, state = samplers.run(solver, predict, z, grid, keys)
      count = samplers.evaluations(solver, grid, state)
      return z, jnp.broadcast_to(count, b), jnp.full(b, jnp.nan)
    steps, norms = jnp.full(b, section.num_steps), jnp.full(b, jnp.nan)
    if section.threshold:
      z, steps, norms = descent.descend_until(solver, predict, z, max_steps=section.num_steps,
                                              threshold=section.threshold, keys=keys)
    else:
      z = descent.descend(solver, predict, z, num_steps=section.num_steps, keys=keys)
    return z, descent.evaluations(solver, steps), norms

  def refill(network, z, labels, keys, slots):
    z, steps, norms = descent.descend_refilled(
        solver, network, z, labels, slots=slots, max_steps=section.num_steps,
        threshold=section.threshold, keys=keys)
    return z, descent.evaluations(solver, steps), norms

  return Sampling(process, solver, grid, noise, _guidance(config, process), integrate,
                  refill if section.threshold else None)


def scale_of(section: ConfigDict) -> Number | tuple[float, ...]:
  """config.sample.scale: a number, or one for each entry of the last axis; 1 if all are 1."""
  if not isinstance(section.scale, (tuple, list)):
    return section.scale
  scale = tuple(map(float, section.scale))
  return 1.0 if set(scale) == {1.0} else scale


def _guidance(config: ConfigDict, process: Process) -> Callable[[Sequence[Model], Any], Predict]:
  """(models, labels) -> Predict: guided at config.sample.scale, in its interval.

  Away from the second model if config.sample.guide names a run, else away from the null class.
  """
  section, classes = config.sample, config.data.num_classes
  scale, other = scale_of(section), section.guide.workdir
  if isinstance(scale, tuple):
    scale = np.reshape(scale, (1,) * len(config.data.shape) + (-1,))
  interval = bind(INTERVALS, section.interval, 'sample.interval')
  if interval:
    with naming('sample.interval'):
      guidance.check_interval(interval['low'], interval['high'])

  def predictor(models, labels):
    network, *guides = [model.network(model.params) for model in models]
    alone = fields.bind(network, labels)
    # Previews in training have no guide: they are not guided.
    if arrays.is_number(scale, 1) or (other and not guides):
      return alone
    if other:
      guided = guidance.autoguided(alone, fields.bind(guides[0], labels), scale=scale,
                                   rescale=section.rescale)
    else:
      guided = guidance.guided(network, labels, jnp.full_like(labels, classes), scale=scale,
                               rescale=section.rescale)
    return guidance.on_interval(guided, alone, process=process, **interval) if interval else guided

  return predictor
