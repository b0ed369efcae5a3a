"""Damages a file of the newest checkpoint: the one before it must be restored."""

import contextlib
import io
import os
import pathlib
import random
import shutil
from typing import Any

from eqflow.config import recipes
from eqflow.training import checkpoint, sharding, train_state
from tests.faults import states, victim


def _flip(path, chance):
  data, place = bytearray(path.read_bytes()), chance.randrange(8 * path.stat().st_size)
  data[place // 8] ^= 1 << place % 8
  path.write_bytes(data)


def _swap(path, chance):
  others = [other for other in path.parent.iterdir() if other.is_file() and other != path
            and other.read_bytes() != path.read_bytes()]
  if not others:
    return _flip(path, chance)
  other = chance.choice(others)
  a, b = path.read_bytes(), other.read_bytes()
  path.write_bytes(b)
  other.write_bytes(a)


KINDS = {
    'truncated': lambda path, chance: os.truncate(path, chance.randrange(path.stat().st_size)),
    'zeroed': lambda path, chance: path.write_bytes(bytes(path.stat().st_size)),
    'one bit flipped': _flip, 'deleted': lambda path, chance: path.unlink(), 'swapped': _swap,
}


def like() -> Any:
  """A state with the structure of the victim's checkpoints."""
  config = victim.config_of()
  recipe = recipes.recipe(config)
  return train_state.create(recipe.model.init, recipe.optimizer, recipe.averages.names, 0,
                            sharding.device_mesh())


def damaged(folder: pathlib.Path, whole: pathlib.Path, state: Any, kind: str,
            chance: random.Random) -> dict[str, int]:
  """{'cases', 'older', 'silent'}: whether the checkpoint before was restored, or the damaged one."""
  workdir = folder / 'damaged'
  shutil.copytree(whole / 'checkpoints', workdir / 'checkpoints')
  older, newest = states.steps(workdir)[-2:]
  files = sorted(path for path in (workdir / f'checkpoints/{newest}').rglob('*')
                 if path.is_file() and path.stat().st_size)
  KINDS[kind](chance.choice(files), chance)
  with (contextlib.redirect_stdout(io.StringIO()),
        checkpoint.open_checkpoints(workdir, keep=None) as checkpoints):
    taken = int(checkpoints.restore(state, repair=True).step)
  shutil.rmtree(workdir)
  return dict(cases=1, older=int(taken == older), silent=int(taken != older))
