"""The parameters of a run, from its newest checkpoint or a reconstructed average."""

import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from eqflow import ema
from eqflow.config import recipes
from eqflow.config.errors import ConfigError
from eqflow.fields import Model
from eqflow.runs import blueprint, second_run
from eqflow.runs.identity import check_config, identity
from eqflow.runs.run import mesh_of
from eqflow.training import checkpoint, sharding, snapshots, train_state


def restore(config: ConfigDict, recipe: recipes.Recipe, workdir: pathlib.Path, *,
            reconstructed: bool = False) -> tuple[int, Model]:
  """(step, model): the parameters called config.sample.params, of the newest checkpoint.

  A std that training does not track, or any with `reconstructed`, was made by --mode=reconstruct.
  Raises FileNotFoundError if there is none, ValueError if workdir belongs to another config. Writes
  nothing.
  """
  check_config(config, workdir)
  kept = config.sample.params in ('params', *recipe.averages.names) and not reconstructed
  step, params = (_kept if kept else _reconstructed)(config, recipe, workdir)
  return step, Model(recipe.model.network, params)


def models(config: ConfigDict, recipe: recipes.Recipe, workdir: pathlib.Path, *,
           reconstructed: bool = False) -> tuple[int, tuple[Model, ...]]:
  """(step, models) that recipe.sampling takes: the run's own, and the one that guides it, if any."""
  guide = guide_of(config, recipe)
  step, own = restore(config, recipe, workdir, reconstructed=reconstructed)
  return step, (own, restore(*guide)[1]) if guide else (own,)


def _kept(config, recipe, workdir):
  """(step, params) of an average that was kept in training, or of what it is an average of."""
  if not checkpoint.exists(workdir):
    raise FileNotFoundError(f'{workdir} holds no checkpoint: train first, with --mode=train and the '
                            'same --config and --workdir')
  # Abstract shapes: allocate nothing that restore would overwrite.
  state = blueprint.first_state(config, recipe, mesh_of(config), abstract=True)
  with checkpoint.open_checkpoints(workdir, keep=None, run=identity(config)) as checkpoints:
    restored = checkpoints.restore(state)
  return int(restored.step), train_state.parameters(restored, config.sample.params)


def guide_of(config: ConfigDict,
             recipe: recipes.Recipe) -> tuple[ConfigDict, recipes.Recipe, pathlib.Path] | None:
  """(config, recipe, folder) of the run that config.sample.guide names, or None where it names none.

  Reads no checkpoint. Raises ConfigError if there is no such run, or it cannot guide this one.
  """
  guide, classes = config.sample.guide, config.data.num_classes
  if not guide.workdir:
    return None
  if not guide.params:
    raise ConfigError('sample.guide.params', guide.params, 'must name parameters of the guide',
                      "use 'params', one of its EMAs, or a std made by --mode=reconstruct")
  folder = pathlib.Path(guide.workdir).expanduser()
  try:
    other = second_run.config_of(folder)
    # The guide itself is not guided.
    other.sample = ConfigDict(other.sample.to_dict() | dict(
        guide=dict(workdir='', params=''), params=guide.params, scale=1.0))
    theirs = second_run.recipe_of(other, config, recipe)
    if other.data.num_classes not in (0, classes):
      raise ValueError(f'it has {other.data.num_classes} classes, but --workdir has {classes}: choose '
                       'a run with as many, or with none')
  except ValueError as error:
    raise ConfigError(
        'sample.guide.workdir', guide.workdir, f'cannot guide this run: {error}') from error
  return other, theirs, folder


def average_like(recipe: recipes.Recipe) -> Any:
  """The shapes and dtypes of an average of the parameters."""
  return jax.eval_shape(lambda key: ema.init(recipe.model.init(key), ['']), jax.random.key(0))['']


def _reconstructed(config, recipe, workdir):
  name, folder = config.sample.params, workdir / 'reconstructed' / config.sample.params
  if not snapshots.listed(folder):
    raise FileNotFoundError(f'{workdir} holds no average of std {name}: make it first, with '
                            f'--mode=reconstruct --std={name} and the same --config and --workdir')
  like = average_like(recipe)
  newest = snapshots.check(folder, like=like, run=identity(config))[-1]
  params = snapshots.placed(snapshots.read(newest.path, name, like), like,
                            sharding.of(like, recipe.model.rules, mesh_of(config)))
  return newest.examples // config.train.batch, params
