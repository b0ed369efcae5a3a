"""--labels=3+5, --weights and --with: samples of several classes, or several models, at once.

The fields are added, each with its weight: y = sum_i w_i y_i. By default the weights are equal and
sum to one, so that steps are as long as those of one model; the paper's sum has 1 for each.
"""

import math
import pathlib
from typing import Any, NamedTuple

from jax.tree_util import Partial
from ml_collections import ConfigDict
import numpy as np

from eqflow import guidance
from eqflow.config import recipes, samplings
from eqflow.runs import compatibility, restore


class Asked(NamedTuple):
  """What is to be sampled: `labels` is what recipe.draw takes, and `columns` tell of it in files."""
  recipe: recipes.Recipe
  params: Any
  step: int
  labels: Any                       # [n], or ([n, k], weights [n, k])
  columns: dict[str, np.ndarray]


def asked(config: ConfigDict, workdir: pathlib.Path, labels: list[str] | None,
          default: np.ndarray, *, weights: list[str] | None = None,
          others: list[str] | None = None) -> Asked:
  """The newest model of workdir, and of `others`, asked for labels, repeated in turn, or for `default`.

  A label is a class, or classes joined by '+': of one model, or one for each model. `default` [n] says
  how many. Raises ValueError for labels, weights or models that do not fit, before a checkpoint is
  read, and FileNotFoundError where there is none.
  """
  folders = [workdir, *(pathlib.Path(other).expanduser() for other in others or [])]
  flags = [f'--with={folder}' for folder in folders]
  configs = [config, *map(compatibility.config_of, folders[1:], flags[1:])]
  built = [recipes.recipe(config)]
  for other, flag in zip(configs[1:], flags[1:]):
    built.append(compatibility.recipe_of(other, flag, config, built[0]))
  classes, single = [each.data.num_classes for each in configs], len(configs) == 1
  # `default` has classes of the first model: without any it is zeros, which are a class to another.
  if labels is None and any(count not in (0, classes[0]) for count in classes):
    raise ValueError(f'the models have {classes} classes: give --labels, a class for each joined by +')
  terms = _terms(labels, default, classes)
  scales = _weights(weights, terms)
  if built[0].sampling.grid is not None and not np.allclose(scales.sum(1), 1, atol=1e-6):
    raise ValueError(f'--weights={",".join(weights)}: along times weights sum to 1; only a descent '
                     'takes others')
  given, columns = terms, dict(labels=terms, weights=scales)
  if single and weights is None and terms.shape[1] == 1:
    given = terms[:, 0]
    columns = dict(labels=given)
  found = [restore.restore(*each) for each in zip(configs, built, folders)]
  if given is not terms:
    return Asked(built[0], found[0][1], found[0][0], given, columns)
  return Asked(joined(built), [params for _, params in found], found[0][0],
               (np.where(terms < 0, 0, terms), scales), columns)


def joined(built: list[recipes.Recipe]) -> recipes.Recipe:
  """The first recipe, its field sum_i w_i y_i: of k classes of one model, or one class of each of k.

  Its params are a list of theirs, its labels (labels [b, k], weights [b, k]).
  """
  def predictor(params, given):
    labels, weights = given
    models, k = list(zip(built, params)), labels.shape[1]
    models = models * k if len(models) == 1 else models
    predicts = [recipe.sampling.predictor(theirs, labels[:, i])
                for i, (recipe, theirs) in enumerate(models)]
    return guidance.added(predicts, [weights[:, i] for i in range(k)])

  sampling = built[0].sampling._replace(predictor=predictor)
  return built[0]._replace(sampling=sampling, draw=Partial(samplings.draw, sampling),
                             pair=Partial(samplings.pair, sampling))


def _terms(given, default, classes):
  """int32 [n, k] labels, -1 where an example has fewer than k."""
  count, models = len(default), len(classes)
  if given is None:
    return np.tile(default.astype(np.int32)[:, np.newaxis], models)
  text = ','.join(given)
  if not 1 <= len(given) <= count:
    raise ValueError(f'--labels={text}: give 1 to {count} labels, one for each sample at most')
  rows = [label.split('+') for label in given]
  if models > 1:
    rows = [row * models if len(row) == 1 else row for row in rows]
    if any(len(row) != models for row in rows):
      raise ValueError(f'--labels={text}: with {models} models a label is one class for all of them, '
                       f'or {models} classes joined by +')
  for row in rows:
    for i, label in enumerate(row):
      limit = classes[i] if models > 1 else classes[0]
      # A model without classes beside one that has some takes any place in the row as 0.
      if not label.isdecimal() or int(label) >= max(limit, int(models > 1)):
        raise ValueError(f'--labels={text}: choose from 0 to {limit - 1}' if limit else
                         f'--labels={text}: this model has no classes (config.data.num_classes=0)')
  width = max(map(len, rows))
  filled = np.array([[int(label) for label in row] + [-1] * (width - len(row)) for row in rows])
  return np.resize(filled, (count, width)).astype(np.int32)


def _weights(given, terms):
  """float32 [n, k]: those given, or equal ones that sum to 1; 0 where there is no label."""
  there = terms >= 0
  if given is None:
    return (there / there.sum(1, keepdims=True)).astype(np.float32)
  try:
    numbers = [float(weight) for weight in given]
  except ValueError:
    numbers = [math.nan]
  if not all(map(math.isfinite, numbers)) or not (there.sum(1) == len(numbers)).all():
    raise ValueError(f'--weights={",".join(given)}: give a finite number for each of the '
                     f'{" or ".join(map(str, sorted(set(there.sum(1)))))} fields that are added: one '
                     'for each class that --labels joins by +, or for each model')
  return np.tile(np.float32(numbers), (len(terms), 1))
