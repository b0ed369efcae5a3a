"""What a run compiles: its first state, its training step, and the shapes that this step takes."""

from collections.abc import Callable

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from eqflow.config import recipes
from eqflow.training import nonfinite, sharding, train_state, train_step


def first_state(config: ConfigDict, recipe: recipes.Recipe, mesh: Mesh, *,
                abstract: bool = False) -> train_state.TrainState:
  """The initial state of a run, sharded over the mesh; if abstract, only shapes and shardings."""
  return train_state.create(
      recipe.model.init, recipe.optimizer, recipe.averages.names, config.seed, mesh,
      rules=recipe.model.rules, histogram=recipe.objective.histogram, scale=recipe.objective.scale,
      abstract=abstract)


def make_step(config: ConfigDict, recipe: recipes.Recipe, mesh: Mesh,
              state: train_state.TrainState) -> Callable:
  """The jitted training step, for states that are sharded like this one."""
  scaled = recipe.objective.scale != 1
  gradient = train_step.gradient_of(recipe.objective.loss, accumulate=config.train.accumulate,
                                    scaled=scaled)
  return train_step.make_step(
      gradient, recipe.optimizer, recipe.averages.rates, mesh,
      places=jax.tree.map(lambda a: a.sharding, state), measure=recipe.objective.measure,
      prepare=recipe.model.prepare,
      skip=(nonfinite.rescaled if scaled else nonfinite.counted) if config.train.max_skipped else None)


def step_and_shapes(config: ConfigDict, recipe: recipes.Recipe, mesh: Mesh) -> tuple[Callable, tuple]:
  """(step, (state, batch)): what training compiles, as shapes and shardings."""
  state, b = first_state(config, recipe, mesh, abstract=True), config.train.batch
  rows = {'x': ((b, *config.data.shape), np.float32), 'label': ((b,), np.int32),
          'index': ((b,), np.uint32)}
  if recipe.objective.couple or config.data.name == 'pairs':
    rows['eps'] = rows['x']
  batch = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.by_example(mesh))
           for name, (shape, dtype) in rows.items()}
  return make_step(config, recipe, mesh, state), (state, batch)


def compiled(config: ConfigDict, recipe: recipes.Recipe, mesh: Mesh) -> Callable:
  """The training step, compiled without any data."""
  step, shapes = step_and_shapes(config, recipe, mesh)
  return step.lower(*shapes).compile()
