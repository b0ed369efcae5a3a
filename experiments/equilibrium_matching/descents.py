"""Distances along descents: step sizes, momentum, optimizers, stopping by the norm of the field."""

import numpy as np
import optax

from eqflow import descent
from experiments.equilibrium_matching import measure, models

# Norms over the 64 elements of a digit; `threshold_of` scales them to other sizes.
THRESHOLDS = (10, 9, 8, 7, 6, 5, 4.5, 4, 3.5, 3, 2.5, 2)
STEP = 0.003

# name: (descent, steps). Every one is long enough to pass its best number of steps.
DESCENTS = {
    **{f'descent {size:g}': (lambda size=size: descent.gradient_descent(size), steps)
       for size, steps in ((0.006, 110), (0.0125, 60), (0.025, 30))},
    **{f'nesterov {size:g} {momentum:g}': (
        lambda size=size, momentum=momentum: descent.nesterov(size, momentum), steps)
       for size, momentum, steps in ((0.003, 0.3, 130), (0.003, 0.35, 130), (0.012, 0.35, 50),
                                     (0.001, 0.9, 100))},
}
OPTIMIZERS = {
    'adam .05': lambda: optax.adam(0.05),
    'sgd .001 momentum .9': lambda: optax.sgd(0.001, momentum=0.9),
    'sgd .01 momentum .5': lambda: optax.sgd(0.01, momentum=0.5),
    'sgd .003 momentum .35': lambda: optax.sgd(0.003, momentum=0.35),
    # Unlike the paper's look-ahead, this one accumulates velocity.
    'sgd .003 nesterov .35': lambda: optax.sgd(0.003, momentum=0.35, nesterov=True),
}


def step_of(row: str) -> float:
  """The step size that makes a row's descent as fast as the descent of gain 4."""
  changes = models.ROWS[row][1]
  decay = changes.get('output', {}).get('decay', dict(name='truncated', gain=4.0))
  gain = 1.0 if row == 'blind_flow' else decay['gain']
  return STEP * 4 / gain * (2 if decay['name'] == 'linear' else 1)


def descended(model: measure.Training, row: str) -> dict:
  """{step_size, curve, best}: gradient descent for 250 steps."""
  size, every = step_of(row), 5
  states = measure.descent_path(model, descent.gradient_descent(size), 250, every=every)
  curve = measure.curve(model.data, states, every)
  steps = measure.best(curve)
  found = dict(steps=steps, distance=curve[steps]) | measure.details(model.data, states[steps // every])
  return dict(step_size=size, curve=curve, best=found)


def swept(model: measure.Training, row: str) -> dict:
  """{name: curve} of other step sizes and momenta."""
  found = {}
  for name, (make, steps) in DESCENTS.items():
    every = 5 if steps > 30 else 1
    states = measure.descent_path(model, make(), steps, every=every)
    found[name] = measure.curve(model.data, states, every)
  return found


def optimized(model: measure.Training, row: str) -> dict:
  """{name: curve} of optax optimizers over 100 steps."""
  return {name: measure.curve(model.data, measure.descent_path(
      model, descent.from_optax(make()), 100, every=5), 5) for name, make in OPTIMIZERS.items()}


def adaptive(model: measure.Training, row: str) -> dict:
  """Stopping by the norm of the field: {threshold: evaluations, distance, ...}, and the steps taken.

  One descent of 250 steps contains all thresholds: a sample stops at the first state with a norm
  below the threshold, and the evaluation that finds it counts. `checked` repeats one threshold with
  `descend_until`.
  """
  size = step_of(row)
  states = measure.descent_path(model, descent.gradient_descent(size), 250)
  norms = norms_of(states, size)
  curve = measure.curve(model.data, states[:251:5], 5)
  rows = by_threshold(model, states, norms)
  return dict(step_size=size, fixed_250=curve[250], best_steps=measure.best(curve),
              best_distance=curve[measure.best(curve)], rows=rows,
              steps_at_3_5=_counts(np.minimum(first_below(norms, threshold_of(model)) + 1, 250)),
              norms={k: np.quantile(norms[k], (0.05, 0.5, 0.95)) for k in range(0, 250, 10)},
              checked=stopped(model, threshold_of(model), model.noise))


def threshold_of(model: measure.Training, threshold: float = 3.5) -> float:
  """`threshold` scaled from the 64 elements of a digit to the elements of this data."""
  return threshold * float(np.sqrt(np.prod(model.config.data.shape) / 64))


def by_threshold(model: measure.Training, states: np.ndarray, norms: np.ndarray) -> dict:
  """{threshold: evaluations, distance, distance after as many fixed steps, samples not converged}."""
  rows = {}
  for threshold in THRESHOLDS:
    at = first_below(norms, threshold_of(model, threshold))
    cost = float(np.minimum(at + 1, len(norms)).mean())
    rows[threshold] = dict(
        evaluations=cost, distance=measure.distance(model.data, picked(states, at)),
        fixed=measure.distance(model.data, states[round(cost)]),
        unfinished=int((at == len(norms)).sum()))
  return rows


def stopped(model: measure.Training, threshold: float, z: np.ndarray, size: float = STEP) -> dict:
  """Distance and evaluations of `descend_until` from z."""
  ends, steps = [], []
  for rows in measure.in_batches(model):
    end, taken, _ = descent.descend_until(
        descent.gradient_descent(size), model.predict(model.labels[rows]), z[rows], max_steps=250,
        threshold=threshold)
    ends.append(np.asarray(end))
    steps.append(np.asarray(taken))
  x, taken = np.concatenate(ends)[:len(z)], np.concatenate(steps)[:len(z)]
  return dict(distance=measure.distance(model.data, x), evaluations=float(taken.mean()))


def _counts(steps):
  values, counts = np.unique(steps, return_counts=True)
  return dict(zip(values.tolist(), counts.tolist()))


def norms_of(states: np.ndarray, size: float) -> np.ndarray:
  """|f| [k, n] at the start of each step, from states [k + 1, n, ...]: a step moves z by size f."""
  moved = np.diff(states, axis=0).reshape(len(states) - 1, states.shape[1], -1)
  return np.linalg.norm(moved, axis=2) / size


def first_below(norms: np.ndarray, threshold: float) -> np.ndarray:
  """The first step [n] with its norm [k, n] below the threshold; k if it never is."""
  below = norms < threshold
  return np.where(below.any(0), below.argmax(0), len(norms))


def picked(states: np.ndarray, at: np.ndarray) -> np.ndarray:
  """states[at[i], i] for every sample i."""
  return states[at, np.arange(len(at))]
