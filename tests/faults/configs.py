"""Invalid configs: training must reject each, naming the key, before it builds a step."""

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
from eqflow.runs.run import run_of
from eqflow.training import train_state, train_step
from tests import ROOT
from tests.faults import mutations


_create = train_state.create


class Accepted(Exception):
  """Training started to compile."""


def accept(*given, abstract=False, **named):
  if abstract:
    return _create(*given, abstract=True, **named)
  raise Accepted


@contextlib.contextmanager
def nothing_compiled() -> Iterator[None]:
  """Inside, a training raises Accepted when it creates its state or step."""
  with (mock.patch.object(train_state, 'create', accept),
        mock.patch.object(train_step, 'make_step', accept)):
    yield


def judged(mutation: mutations.Mutation, folder: pathlib.Path) -> str:
  """'rejected', or what happened instead; call it inside `nothing_compiled`."""
  workdir = folder / 'run'
  try:
    train.train(run_of(mutation.config(str(folder / 'data')), workdir))
  except Accepted:
    shutil.rmtree(workdir)
    return 'accepted'
  except ValueError as error:
    if not any(named(str(error), key) for key in mutation.keys):
      return f'does not name {" or ".join(mutation.keys)}: {error}'
    return 'rejected' if not workdir.exists() else f'{workdir} was made'
  except Exception as error:
    return f'{type(error).__name__}: {error}'
  return 'ended'


def named(said: str, key: str) -> bool:
  """Whether an error names the key, whole, or its section and its last part."""
  parent, _, last = key.rpartition('.')
  return f'config.{key}' in said or bool(
      parent and f'config.{parent}' in said and re.search(rf'\b{last}\b', said))


def reject(folder: pathlib.Path, wanted: int, seed: int) -> dict[str, int | str]:
  """{'what', 'cases', 'accepted'}: tries `wanted` mutations in this process; prints accepted ones."""
  found = collections.Counter(cases=0, accepted=0)
  with nothing_compiled():
    for mutation in mutations.drawn(wanted, seed):
      said = judged(mutation, folder)
      found.update(cases=1, accepted=said != 'rejected')
      if said != 'rejected':
        print(mutation, '->', said, flush=True)
  return {'what': 'rejected by train', **found}


def reject_by_command(folder: pathlib.Path, wanted: int, seed: int) -> dict[str, float]:
  """{'cases', 'rejected', 'slowest' in s}: the same through the command line, with config files."""
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
    found.update(cases=1, rejected=good)
    found['slowest'] = max(found['slowest'], round(seconds, 1))
    if not good:
      print(mutation, '->', done.returncode, done.stderr[-1000:], flush=True)
  return dict(found)
