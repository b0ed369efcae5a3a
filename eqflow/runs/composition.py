"""--labels=3+5, --weights and --others: samples of several classes, or of several models, at once.

Their fields are added: y = sum_i w_i y_i. By default the weights are equal and sum to 1, which keeps
the length of a step; in the paper each weight is 1.
"""

from collections.abc import Sequence
import math
from typing import NamedTuple

from jax import numpy as jnp
import numpy as np

from eqflow import files, guidance
from eqflow.config.sampling import Sampling
from eqflow.fields import Model
from eqflow.runs import dataset, generate, restore, second_run
from eqflow.runs.run import Run


class Composed(NamedTuple):
  """What is sampled: sampling.generate(models, keys, labels)."""
  sampling: Sampling
  models: Sequence[Model]
  step: int
  labels: np.ndarray                # int32 [n], or [n, k] if fields are added: -1 for fewer than k
  columns: dict[str, np.ndarray]    # labels and weights, as the output file has them
  names: Sequence[str]              # of the classes; () for models without classes


def composed(run: Run, labels: list[str] | None, default: np.ndarray, *,
             weights: list[str] | None = None, others: list[str] | None = None) -> Composed:
  """The newest model of the run and of `others`, at `labels` repeated in turn, or at `default` [n].

  A label is a class, or classes joined by '+': several classes of one model, or one class for each
  model. A class is the name that the run's data give it, or its number if no class has that name.
  Raises ValueError for labels, weights or models that do not fit, before a checkpoint is read, and
  FileNotFoundError if a folder contains no checkpoint.
  """
  runs = [run]
  for folder in map(files.resolved, others or []):
    try:
      runs.append(second_run.run_like(run, second_run.config_of(folder), folder))
    except ValueError as error:
      raise ValueError(f'--others={folder}: {error}') from error
  classes, single = [each.config.data.num_classes for each in runs], len(runs) == 1
  # `default` has classes of the first model: all zeros if it has no classes, a valid class of others.
  if labels is None and any(count not in (0, classes[0]) for count in classes):
    raise ValueError(f'the models have {classes} classes; use --labels, with one class for each model '
                     'joined by +')
  terms = _terms(labels, default, classes, [dataset.class_names(each.workdir) for each in runs])
  scales = _weights(weights, terms)
  sampling = run.recipe.sampling
  if sampling.grid is not None and not np.allclose(scales.sum(1), 1, atol=1e-6):
    raise ValueError(f'--weights={",".join(weights)} must sum to 1, except for a descent')
  found = [restore.models(each) for each in runs]
  models, step = [model for _, models in found for model in models], found[0][0]
  # Label 3 may be another class for another model.
  names = generate.class_names(run) if single else tuple(map(str, range(max(classes))))
  if single and weights is None and terms.shape[1] == 1:
    return Composed(sampling, models, step, terms[:, 0], dict(labels=terms[:, 0]), names)
  parts = [(each.recipe.sampling, len(models)) for each, (_, models) in zip(runs, found)]
  return Composed(added(parts, scales[0] if weights else None), models, step, terms,
                  dict(labels=terms, weights=scales), names)


def added(parts: Sequence[tuple[Sampling, int]], weights: np.ndarray | None = None) -> Sampling:
  """The first sampling, of the field sum_i w_i y_i: k classes of one model, or one class of each of k.

  parts has each sampling and how many models it takes (2 with a guide). Labels are [b, k], -1 where an
  example has fewer than k classes. weights is [k], or None for equal weights that sum to 1.
  """
  def predictor(models, labels):
    ends = np.cumsum([count for _, count in parts])
    groups = [(sampling, models[end - count:end]) for (sampling, count), end in zip(parts, ends)]
    k = labels.shape[1]
    groups = groups * k if len(groups) == 1 else groups
    there = labels >= 0
    scales = there / there.sum(1, keepdims=True) if weights is None else jnp.where(there, weights, 0.0)
    labels = jnp.where(there, labels, 0)
    predicts = [sampling.predictor(theirs, labels[:, i]) for i, (sampling, theirs) in enumerate(groups)]
    return guidance.added(predicts, [scales[:, i] for i in range(k)])

  return parts[0][0]._replace(predictor=predictor)


def _terms(given, default, classes, names):
  """int32 [n, k] labels, -1 where an example has fewer than k."""
  count, models = len(default), len(classes)
  if given is None:
    return np.tile(default.astype(np.int32)[:, np.newaxis], models)
  text = ','.join(given)
  if not 1 <= len(given) <= count:
    raise ValueError(f'--labels={text} must be 1 to {count} labels, at most one for each sample')
  rows = [[label] if label in names[0] else label.split('+') for label in given]
  if models > 1:
    rows = [row * models if len(row) == 1 else row for row in rows]
    if any(len(row) != models for row in rows):
      raise ValueError(f'--labels={text} must be one class for all {models} models, or {models} '
                       'classes joined by +')
  numbers = []
  for row in rows:
    numbers.append([])
    for i, label in enumerate(row):
      limit, known = (classes[i], names[i]) if models > 1 else (classes[0], names[0])
      number = known.index(label) if limit and label in known else label
      # A model without classes takes 0, next to a model with classes.
      if not str(number).isdecimal() or int(number) >= max(limit, int(models > 1)):
        called = f', or their names {", ".join(map(files.shown, known[:20]))}' if known else ''
        raise ValueError(f'--labels={text} must be classes from 0 to {limit - 1}{called}' if limit else
                         f'--labels={text} needs classes, but config.data.num_classes=0')
      numbers[-1].append(int(number))
  width = max(map(len, rows))
  filled = np.array([row + [-1] * (width - len(row)) for row in numbers])
  return np.resize(filled, (count, width)).astype(np.int32)


def _weights(given, terms):
  """float32 [n, k]: the given weights, or equal weights that sum to 1; 0 for a label of -1."""
  there = terms >= 0
  if given is None:
    return (there / there.sum(1, keepdims=True)).astype(np.float32)
  try:
    numbers = [float(weight) for weight in given]
  except ValueError:
    numbers = [math.nan]
  if not all(map(math.isfinite, numbers)) or not (there.sum(1) == len(numbers)).all():
    raise ValueError(f'--weights={",".join(given)} must be a finite number for each of the '
                     f'{" or ".join(map(str, sorted(set(there.sum(1)))))} fields that are added: one '
                     'for each class that --labels joins by +, or for each model')
  return np.tile(np.float32(numbers), (len(terms), 1))
