"""Runs that were never trained: their networks are random, far from zero."""

import jax
import numpy as np

from eqflow.config import recipes
from eqflow.fields import Model
from tests import config_file as load

SHAPE = 8, 8, 1


def tiny(place, variant='eqm', **changed):
  """A small config of the digits."""
  config = load('digits').get_config(variant)
  config.data.dir = str(place.parent / 'data')
  config.model.update(dict(width=16, depth=1, heads=2))
  config.sample.update(dict(num_steps=4, batch=8, params='params') | changed)
  config.evaluate.num_samples = 12
  return config.lock()


class Untrained:
  """A folder with a config, and a model that replaces its checkpoint."""

  def __init__(self, place, name, seed, variant='eqm'):
    self.config, self.workdir = tiny(place, variant), place / name
    self.workdir.mkdir()
    (self.workdir / 'config.json').write_text(self.config.to_json_best_effort())
    self.recipe, rng = recipe_of(self.config), np.random.default_rng(seed)
    shapes = jax.eval_shape(self.recipe.model.init, jax.random.key(0))
    self.params = jax.tree.map(lambda a: 0.3 * rng.normal(size=a.shape).astype(a.dtype), shapes)
    # Four examples wherever it is called: it compiles once.
    self.model = Model(self.recipe.model.network, self.params)
    self.predict = jax.jit(self.recipe.model.network(self.params))

  def changed(self, **changed):
    config = self.config.copy_and_resolve_references().unlock()
    config.sample.update(changed)
    return config.lock()


RECIPES, BUILD = {}, recipes.recipe


def recipe_of(config):
  """recipes.recipe, the same object for the same config, so that it compiles once."""
  key = config.to_json_best_effort()
  if key not in RECIPES:
    RECIPES[key] = BUILD(config)
  return RECIPES[key]
