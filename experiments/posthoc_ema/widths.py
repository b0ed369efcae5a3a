"""Averages of any width from snapshots of two: their weights over time, and samples of digits."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from matplotlib import pyplot as plt
import numpy as np
import optax

from configs import digits
from eqflow import ema, posthoc_ema
from eqflow.config import recipes
from eqflow.fields import Model
from eqflow.runs import generate
from experiments import colours
from experiments.equilibrium_matching import measure
from experiments.equilibrium_matching.figures import LABEL

KEPT = 0.05, 0.1


class Training(NamedTuple):
  """A training of the digits with its averages and snapshots."""
  recipe: Any
  params: Any                # the last ones
  tracked: dict[str, Any]    # averages at the end, tracked during training
  times: list[int]           # examples seen at each snapshot
  stds: list[float]
  snapshots: list[Any]       # trees on the host, in the order of times and stds


def profile(std: float, t: np.ndarray) -> np.ndarray:
  """(power + 1) t^power: the weight of the parameters at time t in an average of that width at 1."""
  power = ema.power_from_std(std)
  return (power + 1) * t**power


def combined(count: int, std: float, t: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
  """(coefficients [count, 2], their summed weights at t, expected error) for even snapshots."""
  times, stds = np.repeat(np.arange(1, count + 1) / count, 2), np.tile(KEPT, count)
  x = posthoc_ema.solve(times, stds, 1.0, std)
  each = [a * profile(b, np.minimum(t / at, 1)) / at * (t <= at) for a, b, at in zip(x, stds, times)]
  return x.reshape(count, 2), sum(each), float(posthoc_ema.expected_error(x, times, stds, 1.0, std))


def realised(std: float, every: int, *, in_examples: bool, steps: int = 20_000) -> float:
  """The realised std of an average updated every few steps, its rate by examples or by updates."""
  power, mean, square = ema.power_from_std(std), 0.0, 0.0
  for step in range(every, steps + 1, every):
    rate = 1 - (1 - (every if in_examples else 1) / step) ** (power + 1)
    t = step / steps
    mean, square = mean + rate * (t - mean), square + rate * (t * t - square)
  return float(np.sqrt(square - mean**2))


def trained(examples: int, *, rate: float = 0.006, snapshots: int = 24,
            stds: Sequence[float] = KEPT) -> Training:
  """Trains the digits' transformer in EDM's preconditioning with an inverse square root rate."""
  config = digits.get_config('edm')
  config.ema.decays, config.sample.params = (), 'params'
  recipe = recipes.recipe(config.lock())
  size, (x, label) = config.train.batch, measure.records('digits')
  every = examples // size // snapshots
  adam = optax.adam(lambda k: rate / jnp.sqrt(jnp.maximum(1.0, 6 * k * size / examples)))
  average = ema.power_average(stds)

  @jax.jit
  def step(i, params, opt, means):
    pick = jax.random.fold_in(jax.random.key(0), i)
    rows = jax.random.randint(pick, (size,), 0, len(x))
    batch = {'x': jnp.asarray(x)[rows], 'label': jnp.asarray(label)[rows],
             'index': i * size + jnp.arange(size, dtype=jnp.uint32)}
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(1), batch['index'])
    grads = jax.grad(lambda params: recipe.objective.loss(keys, params, batch)[0].mean())(params)
    updates, opt = adam.update(grads, opt)
    params = optax.apply_updates(params, updates)
    return params, opt, average.update(means, params, (i + 1) * size)

  params = jax.jit(recipe.model.init)(jax.random.key(0))
  opt, means, times, kept, trees = adam.init(params), average.init(params), [], [], []
  for i in range(every * snapshots):
    params, opt, means = step(jnp.uint32(i), params, opt, means)
    if (i + 1) % every == 0:
      for std in KEPT:
        times.append((i + 1) * size)
        kept.append(std)
        trees.append(jax.tree.map(np.array, means.means[repr(std)]))
  return Training(recipe, params, means.means, times, kept, trees)


def averaged(run: Training, stds: Sequence[float]) -> dict[float, Any]:
  """{std: parameters} at the end of the run, each a sum of its snapshots."""
  x = posthoc_ema.solve(run.times, run.stds, run.times[-1], list(stds))
  return dict(zip(stds, posthoc_ema.reconstruct(run.snapshots, x)))


def relative_distance(tree: Any, other: Any) -> float:
  """|tree - other|/|other|, over all parameters."""
  return float(optax.tree.norm(jax.tree.map(jnp.subtract, tree, other)) / optax.tree.norm(other))


def distances(run: Training, params: dict[Any, Any], count: int) -> dict[Any, float]:
  """{key: Fréchet distance in pixels} of `count` digits sampled with each tree of parameters."""
  labels, found = measure.labels('digits')[:count], {}
  for key, tree in params.items():
    models = [Model(run.recipe.model.network, tree)]
    x, *_ = generate.samples(run.recipe.sampling, models, labels, seed=0, batch=min(count, 120))
    found[key] = measure.distance('digits', x)
  return found


def draw_profiles(stds: Sequence[float], count: int) -> plt.Figure:
  """Weights over time by width, and a width that was not tracked as a sum of snapshots."""
  figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.4), layout='constrained')
  t = np.linspace(0, 1, 1_001)
  for colour, std in zip(colours.CYCLE, stds):
    left.plot(t, profile(std, t), color=colour, label=f'std {std:g}')
  left.set(title='power-function EMAs', ylabel='weight of the parameters at that time')
  wanted = 0.15
  x, sum_, error = combined(count, wanted, t)
  for colour, column, std in zip(colours.CYCLE, x.T, KEPT):
    middle.vlines(np.arange(1, count + 1) / count, 0, column, color=colour,
                  label=f'snapshots of {std:g}')
  middle.set(title=f'a sum of snapshots for std {wanted:g}', ylabel='coefficient of the snapshot')
  right.plot(t, profile(wanted, t), color='0.7', linewidth=5, label='EMA')
  right.plot(t, sum_, color='black', linewidth=1,
             label=f'sum of {2 * count} snapshots: {100 * error:.1f} % error')
  right.set(title=f'the EMA of std {wanted:g} and that sum',
            ylabel='weight of the parameters at that time')
  for axis in (left, middle, right):
    axis.set_xlabel('time / length of the run')
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8, loc='upper left')
  return figure


def draw_distances(found: dict[float, float], last: float) -> plt.Figure:
  """Distance by width, and the distance of the last parameters."""
  figure, axis = plt.subplots(figsize=(5, 3.2), layout='constrained')
  axis.plot(list(found), list(found.values()), 'o-', color=colours.BLUE, label='EMA')
  axis.axhline(last, color='0.5', linestyle='--', label='last parameters')
  axis.set(xlabel='std of the EMA, relative to the training time', ylabel=LABEL, yscale='log')
  axis.grid(alpha=0.25)
  axis.legend(frameon=False, fontsize=8)
  return figure
