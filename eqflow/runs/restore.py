"""The parameters of a run, from its newest checkpoint or a reconstructed average."""

import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from eqflow import ema
from eqflow.config import recipes
from eqflow.fields import Model
from eqflow.runs import blueprint, compatibility
from eqflow.runs.identity import check_config, identity
from eqflow.runs.run import mesh_of
from eqflow.training import checkpoint, sharding, snapshots, train_state


def restore(config: ConfigDict, recipe: recipes.Recipe, workdir: pathlib.Path, *,
            reconstructed: bool = False) -> tuple[int, Model]:
  """(step, model): the parameters called config.sample.params, of the newest checkpoint.

  A std that training does not track, or any with `reconstructed`, was made by --mode=reconstruct.
  Raises FileNotFoundError where there is none, ValueError where workdir is another config's; writes
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

  Reads no checkpoint. Raises ValueError where there is no run, or none that could guide this one.
  """
  guide = config.sample.guide
  if not guide.workdir:
    return None
  folder = pathlib.Path(guide.workdir).expanduser()
  flag = f'config.sample.guide.workdir={guide.workdir!r}'
  if not guide.params:
    raise ValueError(f"{flag} with config.sample.guide.params='': name the parameters to take of that "
                     "run, 'params', an average that it keeps, or one that --mode=reconstruct made")
  other = compatibility.config_of(folder, flag)
  # It is not guided itself.
  other.sample = ConfigDict(other.sample.to_dict() | dict(
      guide=dict(workdir='', params=''), params=guide.params, scale=1.0))
  theirs = compatibility.recipe_of(other, flag, config, recipe)
  if other.data.num_classes not in (0, config.data.num_classes):
    raise ValueError(f'{flag}: it has {other.data.num_classes} classes, --workdir '
                     f'{config.data.num_classes}: give one with as many, or with none')
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
