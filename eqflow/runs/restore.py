"""The parameters of a run, from its newest checkpoint or a reconstructed average."""

import pathlib
from typing import Any

import jax
from jax.tree_util import Partial
from ml_collections import ConfigDict

from eqflow import ema
from eqflow.config import recipes, samplings
from eqflow.runs import blueprint, compatibility
from eqflow.runs.identity import check_config, identity
from eqflow.runs.run import mesh_of
from eqflow.training import checkpoint, sharding, snapshots, train_state


def restore(config: ConfigDict, recipe: recipes.Recipe, workdir: pathlib.Path, *,
            alone: bool = False) -> tuple[int, Any]:
  """(step, params): the parameters called config.sample.params, of the newest checkpoint.

  A std that was not kept in training is what --mode=reconstruct has made of it. Where config.sample
  has a guide, params are draws.Guided, unless they are asked for alone. Raises FileNotFoundError
  where there is none, ValueError where workdir is another config's; writes nothing.
  """
  check_config(config, workdir)
  guide = None if alone else guide_of(config, recipe)
  kept = config.sample.params in ('params', *recipes.ema_names(config))
  step, params = (_kept if kept else _reconstructed)(config, recipe, workdir)
  return step, _guided(params, guide)


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
  guide = config.sample.get('guide')
  if not guide or not guide.workdir:
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


def _guided(params, guide):
  if guide is None:
    return params
  config, recipe, folder = guide
  network = recipe.network(restore(config, recipe, folder)[1])
  if not config.data.num_classes:
    network = Partial(samplings.classless, network=network)
  return samplings.Guided(params, network)


def reconstructed(config: ConfigDict, recipe: recipes.Recipe,
                  workdir: pathlib.Path) -> tuple[int, Any]:
  """(step, params) that --mode=reconstruct made for the std config.sample.params.

  Guided as `restore` says. Raises FileNotFoundError where it made none, ValueError where they are
  damaged or another run's.
  """
  guide = guide_of(config, recipe)
  step, params = _reconstructed(config, recipe, workdir)
  return step, _guided(params, guide)


def average_like(recipe: recipes.Recipe) -> Any:
  """The shapes and dtypes of an average of the parameters."""
  return jax.eval_shape(lambda key: ema.init(recipe.init(key), ['']), jax.random.key(0))['']


def _reconstructed(config, recipe, workdir):
  name, folder = config.sample.params, workdir / 'reconstructed' / config.sample.params
  if not snapshots.listed(folder):
    raise FileNotFoundError(f'{workdir} holds no average of std {name}: make it first, with '
                            f'--mode=reconstruct --std={name} and the same --config and --workdir')
  like = average_like(recipe)
  newest = snapshots.check(folder, like=like, run=identity(config))[-1]
  params = snapshots.placed(snapshots.read(newest.path, name, like), like,
                            sharding.of(like, recipe.rules, mesh_of(config)))
  return newest.examples // config.train.batch, params
