"""The parameters of a run, from its newest checkpoint or a reconstructed average."""

from typing import Any

import jax

from eqflow import ema
from eqflow.config import recipes
from eqflow.fields import Model
from eqflow.runs import blueprint, room, second_run
from eqflow.runs.identity import check_config, identity
from eqflow.runs.run import Run
from eqflow.training import checkpoint, progress, sharding, snapshots, train_state


def restore(run: Run, *, reconstructed: bool = False) -> tuple[int, Model]:
  """(step, model): the parameters that config.sample.params names, of the newest checkpoint.

  An EMA that training does not track, and any EMA with `reconstructed`, is read from the files of
  --mode=reconstruct. Raises FileNotFoundError without a checkpoint or such a file, ValueError if
  workdir belongs to another config. Writes nothing.
  """
  config, workdir, recipe, _ = run
  check_config(config, workdir)
  progress.say(f'restoring {train_state.called(config.sample.params)} of {workdir}')
  tracked = config.sample.params in ('params', *recipe.averages.names) and not reconstructed
  step, params = (_tracked if tracked else _reconstructed)(run)
  return step, Model(recipe.model.network, params)


def models(run: Run, *, reconstructed: bool = False) -> tuple[int, tuple[Model, ...]]:
  """(step, models) that the run's sampling takes: its own model, then its guide, if any."""
  guide = second_run.guide_of(run)
  step, own = restore(run, reconstructed=reconstructed)
  return step, (own, restore(guide)[1]) if guide else (own,)


def _tracked(run):
  """(step, params): the trained parameters or an EMA of them, from the newest checkpoint."""
  config, workdir, recipe, mesh = run
  if not checkpoint.exists(workdir):
    raise FileNotFoundError(f'{workdir} contains no checkpoint; train first, with --mode=train and the '
                            'same --config and --workdir')
  # Abstract shapes: allocate nothing that restore would overwrite.
  state = blueprint.first_state(config, recipe, mesh, abstract=True)
  room.check_state(state, mesh)
  with checkpoint.open_checkpoints(workdir, keep=None, run=identity(config)) as checkpoints:
    restored = checkpoints.restore(state)
  return int(restored.step), train_state.parameters(restored, config.sample.params)


def average_like(recipe: recipes.Recipe) -> Any:
  """The shapes and dtypes of an EMA of the parameters."""
  return jax.eval_shape(lambda key: ema.init(recipe.model.init(key), ['']), jax.random.key(0))['']


def _reconstructed(run):
  """(step, params): an EMA that --mode=reconstruct made."""
  config, workdir, recipe, mesh = run
  name, folder = config.sample.params, workdir / 'reconstructed' / config.sample.params
  if not snapshots.listed(folder):
    raise FileNotFoundError(f'{workdir} contains no EMA of std {name}; make it first, with '
                            f'--mode=reconstruct --std={name} and the same --config and --workdir')
  like = average_like(recipe)
  newest = snapshots.check(folder, like=like, run=identity(config))[-1]
  params = snapshots.placed(snapshots.read(newest.path, name, like), like,
                            sharding.of(like, recipe.model.rules, mesh))
  return newest.examples // config.train.batch, params
