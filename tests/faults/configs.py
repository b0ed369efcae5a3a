"""Configs that no run can have, given to training: each is refused by name before its step is made."""

import collections
from collections.abc import Iterator
import contextlib
import pathlib
import re
import shutil
import subprocess
import sys
import time
from unittest import mock

from eqflow.commands import train
from eqflow.training import train_state, train_step
from tests import ROOT
from tests.faults import mutations


class Accepted(Exception):
  """Training went on to compile."""


def _accept(*given, **named):
  raise Accepted


@contextlib.contextmanager
def nothing_compiled() -> Iterator[None]:
  """Within, a training that goes on to make its state or its step raises Accepted."""
  with (mock.patch.object(train_state, 'create', _accept),
        mock.patch.object(train_step, 'make_step', _accept)):
    yield


def judged(mutation: mutations.Mutation, folder: pathlib.Path) -> str:
  """'refused', or what became of the config instead; within `nothing_compiled`."""
  workdir = folder / 'run'
  try:
    train.train(mutation.config(str(folder / 'data')), workdir)
  except Accepted:
    shutil.rmtree(workdir)
    return 'accepted'
  except ValueError as error:
    if not any(named(str(error), key) for key in mutation.keys):
      return f'does not name {" or ".join(mutation.keys)}: {error}'
    return 'refused' if not workdir.exists() else f'{workdir} was made'
  except Exception as error:
    return f'{type(error).__name__}: {error}'
  return 'ended'


def named(said: str, key: str) -> bool:
  """Whether a refusal names the key: whole, or its section and itself."""
  parent, _, last = key.rpartition('.')
  return f'config.{key}' in said or bool(
      parent and f'config.{parent}' in said and re.search(rf'\b{last}\b', said))


def refuse(folder: pathlib.Path, wanted: int, seed: int) -> dict[str, int | str]:
  """{'what', 'cases', 'accepted'}: so many mutations, in this process; those accepted are printed."""
  found = collections.Counter(cases=0, accepted=0)
  with nothing_compiled():
    for mutation in mutations.drawn(wanted, seed):
      said = judged(mutation, folder)
      found.update(cases=1, accepted=said != 'refused')
      if said != 'refused':
        print(mutation, '->', said, flush=True)
  return {'what': 'refused by train', **found}


def refuse_by_command(folder: pathlib.Path, wanted: int, seed: int) -> dict[str, float]:
  """{'cases', 'refused', 'slowest' in s}: the same through the command line, as files of configs."""
  found = collections.Counter()
  for i, mutation in enumerate(mutations.drawn(wanted, seed)):
    path = folder / f'mutation{i}.py'
    path.write_text('from tests.faults.mutations import Mutation\nnan, inf = map(float, ("nan", '
                    f'"inf"))\n\n\ndef get_config():\n  return {mutation!r}.config({str(folder)!r})\n')
    clock = time.perf_counter()
    done = subprocess.run(
        [sys.executable, '-m', 'eqflow.main', f'--config={path}', f'--workdir={folder / "run"}'],
        cwd=ROOT, capture_output=True, text=True, timeout=120)
    seconds = time.perf_counter() - clock
    said = [line for line in done.stderr.strip().splitlines() if line.startswith('eqflow: ')]
    good = (done.returncode == 2 and len(said) == 1 and 'Traceback' not in done.stderr
            and any(named(said[0], key) for key in mutation.keys))
    found.update(cases=1, refused=good)
    found['slowest'] = max(found['slowest'], round(seconds, 1))
    if not good:
      print(mutation, '->', done.returncode, done.stderr[-1000:], flush=True)
  return dict(found)
