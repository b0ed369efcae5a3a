"""Puts NaN or infinity into a batch, the loss or one leaf of the gradient: no state keeps any."""

import collections
from collections.abc import Callable
import contextlib
import io
import pathlib
import random
import shutil
from typing import Any
from unittest import mock

import jax
from ml_collections import ConfigDict
import numpy as np
import orbax.checkpoint as ocp

from eqflow.commands import train
from eqflow.config import recipes
from eqflow.runs import blueprint
from eqflow.runs.run import Run
from eqflow.training import checkpoint, nonfinite, sharding, train_step
from eqflow.training.runtime import ledger, preemption
from tests import config_file

KINDS = 'batch', 'loss', 'gradient'
STEPS, EVERY = 6, 2   # of a run, and between its checkpoints
BAD = np.nan, np.inf, -np.inf


@jax.custom_vjp
def _marked(leaf, factor):
  """leaf, with its gradient multiplied by factor."""
  return leaf


_marked.defvjp(lambda leaf, factor: (leaf, factor),
               lambda factor, g: (g * factor.astype(g.dtype), None))


def config_of(most: int) -> ConfigDict:
  """6 steps on moons with three checkpoints and two averages, which may skip `most` in a row."""
  config, batch = config_file('toy').get_config(), 16
  config.model.update(dict(width=16, depth=1))
  config.train.update(dict(
      batch=batch, num_examples=batch * STEPS, log_examples=batch * EVERY,
      checkpoint_examples=batch * EVERY, sample_examples=batch * 1000, max_skipped=most,
      keep_checkpoints=STEPS))
  config.ema.update(ConfigDict(dict(stds=(0.05,))))
  return config.lock()


def injected(config: ConfigDict) -> tuple[recipes.Recipe, Callable, int]:
  """(recipe, step, number of leaves): a compiled step; the batch can make its loss and gradients NaN.

  A batch has 'loss' [b], which multiplies the losses, and 'leaves' [b, n]: entry [0, i]
  multiplies the gradient of leaf i.
  """
  recipe = recipes.recipe(config)
  shapes = jax.tree.leaves(jax.eval_shape(recipe.model.init, jax.random.key(0)))

  def loss(keys, params, batch, histogram):
    leaves, tree = jax.tree.flatten(params)
    leaves = [_marked(leaf, batch['leaves'][0, i]) for i, leaf in enumerate(leaves)]
    losses, aux = recipe.objective.loss(keys, jax.tree.unflatten(tree, leaves), batch, histogram)
    return losses * batch['loss'], aux

  step = train_step.make_step(
      train_step.gradient_of(loss), recipe.optimizer, recipe.averages.rates, sharding.device_mesh(),
      prepare=recipe.model.prepare, skip=nonfinite.counted if config.train.max_skipped else None)
  return recipe, step, len(shapes)


def spoiled(batch: dict, kind: str, leaves: int, chance: random.Random | None) -> dict[str, Any]:
  """The batch with NaN or infinity in one entry, loss or leaf; chance=None changes nothing."""
  b = len(batch['index'])
  batch = batch | {'x': np.array(batch['x']), 'loss': np.ones(b, np.float32),
                   'leaves': np.ones((b, leaves), np.float32)}
  if chance is None:
    return batch
  bad, row = chance.choice(BAD), chance.randrange(b)
  if kind == 'batch':
    batch['x'][row, chance.randrange(batch['x'].shape[1])] = bad
  elif kind == 'loss':
    batch['loss'][row] = bad
  else:
    # Infinity times a gradient of 0 is NaN.
    batch['leaves'][:, chance.randrange(leaves)] = bad
  return batch


def run(config: ConfigDict, recipe: recipes.Recipe, step: Callable, leaves: int, workdir: pathlib.Path,
        source: Any, *, kind: str = '', at: range = range(0), chance: random.Random | None = None,
        seen: Callable = lambda *given: None) -> Any:
  """The training loop with the injected step; spoils the batches `at`. Returns the last state.

  Calls seen(number, state before, state after), with states on the host, for every spoiled step.
  """
  mesh = sharding.device_mesh()
  state = blueprint.first_state(config, recipe, mesh)
  place, number = sharding.place_batch, iter(range(STEPS))

  def broken(batch, mesh):
    i = next(number)
    return place(spoiled(batch, kind, leaves, chance if i in at else None), mesh)

  def watched(state, batch):
    i = int(state.step)
    before = _host(state) if i in at else None
    out = step(state, batch)
    if i in at:
      seen(i, before, _host(out[0]))
    return out

  with (mock.patch.object(sharding, 'place_batch', broken),
        checkpoint.open_checkpoints(workdir, keep=config.train.keep_checkpoints) as checkpoints):
    checkpoints.save(state)
    return train.trained(Run(config, workdir, recipe, mesh), source, state, watched, STEPS, checkpoints,
                         preemption.Stop(), ledger.Ledger())


def _host(tree):
  return jax.tree.map(np.array, tree)


def untouched(before: Any, after: Any) -> bool:
  """Whether two states are equal bit for bit, except the position in the data and skipped steps."""
  kept = lambda state: [np.asarray(leaf).tobytes() for name in (
      'seed', 'params', 'opt_state', 'emas', 'histogram', 'sums') for leaf in jax.tree.leaves(
          getattr(state, name))]
  return kept(before) == kept(after)


def clean(workdir: pathlib.Path) -> bool:
  """Whether every number of every checkpoint in workdir is finite."""
  with ocp.StandardCheckpointer() as orbax:
    for path in workdir.glob('checkpoints/*/state'):
      for leaf in jax.tree.leaves(orbax.restore(path)):
        leaf = np.asarray(leaf)
        if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(leaf).all():
          return False
  return True


def poison(folder: pathlib.Path, most: int, wanted: int, seed: int) -> dict[str, dict[str, int]]:
  """{policy and kind: {'cases', 'unclean'}}: `wanted` cases, all kinds in turn."""
  config, found = config_of(most), {}
  source = train.dataset.open_source(config)
  recipe, step, leaves = injected(config)
  for case in range(wanted):
    kind = KINDS[case % len(KINDS)]
    row = found.setdefault(f'{kind}, {"skipped" if most else "run ended"}',
                           collections.Counter(cases=0, unclean=0))
    with contextlib.redirect_stdout(io.StringIO()):
      good = (_skipped if most else _aborted)(
          config, recipe, step, leaves, folder / 'poisoned', source, kind,
          random.Random(f'{seed} {most} {case}'))
    row.update(cases=1, unclean=not good)
    shutil.rmtree(folder / 'poisoned')
  if step._cache_size() != 1:
    raise RuntimeError(f'the step compiled {step._cache_size()} times')
  return {name: dict(row) for name, row in found.items()}


def _aborted(config, recipe, step, leaves, workdir, source, kind, chance):
  """One bad step: the run ends and names it, with the checkpoints from before it."""
  at = chance.randrange(STEPS)
  try:
    run(config, recipe, step, leaves, workdir, source, kind=kind, at=range(at, at + 1), chance=chance)
  except FloatingPointError as error:
    newest = max(int(path.name) for path in (workdir / 'checkpoints').iterdir())
    return f'step {at + 1}: ' in str(error) and clean(workdir) and newest == at // EVERY * EVERY
  return False


def _skipped(config, recipe, step, leaves, workdir, source, kind, chance):
  """One to four bad steps in a row: three are skipped, a fourth ends the run."""
  most, count = config.train.max_skipped, chance.randint(1, config.train.max_skipped + 1)
  at = chance.randrange(STEPS - count + 1)
  same = []
  given = dict(kind=kind, at=range(at, at + count), chance=chance, seen=lambda i, before, after: (
      same.append(untouched(before, after) and int(after.guard.skipped_in_a_row) == len(same) + 1)))
  try:
    state = run(config, recipe, step, leaves, workdir, source, **given)
  except FloatingPointError as error:
    return (count > most and f'step {at + count}: ' in str(error) and all(same) and len(same) == count
            and clean(workdir))
  return (count <= most and all(same) and len(same) == count and clean(workdir)
          and int(state.guard.skipped) == count and int(state.step) == STEPS)
