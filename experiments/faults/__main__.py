"""Kills, stops and damages small runs of the digits, and says what was lost.

  python -m experiments.faults [--kills=20] [--points=20] [--signals=50] [--damages=500]

Kills are of the whole process group, at random instants, chained: a run is started again and again
until it ends, and its last state and all its snapshots must be those of the run that was left alone.
"""

import argparse
import collections
import contextlib
import hashlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from eqflow import build
from eqflow.training import checkpoint, manifest, sharding, signals, step as steps
from experiments import ROOT
from experiments.faults import victim

LIMIT = 300   # seconds that any run may take


def start(workdir: pathlib.Path, *flags: str) -> subprocess.Popen:
  """A victim in a process group of its own."""
  return subprocess.Popen(
      [sys.executable, '-m', 'experiments.faults.victim', f'--workdir={workdir}', *flags], cwd=ROOT,
      text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def finish(workdir: pathlib.Path) -> None:
  """Goes on until the run ends; raises RuntimeError with what it said where it does not."""
  process = start(workdir)
  _, said = process.communicate(timeout=LIMIT)
  if process.returncode:
    raise RuntimeError(f'{workdir} was lost: exit code {process.returncode}\n{said[-3000:]}')


def digest(workdir: pathlib.Path) -> str:
  """SHA-256 of every leaf of the last state, and of every snapshot."""
  found = hashlib.sha256()
  newest = max(workdir.glob('checkpoints/*/state'), key=lambda path: int(path.parent.name))
  with ocp.StandardCheckpointer() as orbax:
    tree = orbax.restore(newest)
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    leaf = np.asarray(leaf)
    found.update(f'{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}'.encode() + leaf.tobytes())
  for path in sorted(workdir.glob('snapshots/*.safetensors')):
    found.update(path.name.encode() + path.read_bytes())
  return found.hexdigest()


def kill(folder: pathlib.Path, expected: str, seconds: float, wanted: int, seed: int) -> dict:
  """{'killed', 'runs', 'lost', 'other'}: random instants within a run's usual time, until so many."""
  chance, found = random.Random(seed), collections.Counter(lost=0, other=0)
  while found['killed'] < wanted:
    workdir = folder / f'run{found["runs"]}'
    for _ in range(12):   # At most so many times, then it may end.
      process = start(workdir)
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=chance.uniform(0, seconds))
      if process.poll() is not None:
        break
      os.killpg(process.pid, signal.SIGKILL)
      process.communicate()
      found['killed'] += 1
      found['without'] += not _restorable(workdir)
      if found['killed'] == wanted:
        break
    found['runs'] += 1
    _judge(workdir, expected, found)
  return dict(found)


def _restorable(workdir):
  """Whether there is a whole checkpoint, or was none yet."""
  whole = [path for path in (workdir / 'checkpoints').glob('*') if path.name.isdecimal()]
  return not whole or any(not manifest.damages(path) for path in whole)


def _judge(workdir, expected, found):
  try:
    finish(workdir)
    found['other'] += digest(workdir) != expected
  except (RuntimeError, subprocess.TimeoutExpired) as error:
    found['lost'] += 1
    print(error, flush=True)
  shutil.rmtree(workdir)


def kill_at(folder: pathlib.Path, expected: str, wanted: int) -> dict[str, dict]:
  """{point: {'killed', 'lost', 'other'}}, at the 1st, 2nd, ... time that a run comes to it."""
  found = {}
  for point in victim.POINTS:
    row = found[point] = collections.Counter(killed=0, lost=0, other=0)
    for count in range(1, wanted + 1):
      workdir = folder / f'{count}'
      # Snapshots and old checkpoints come to be fewer times: from the first again.
      process = start(workdir, f'--point={point}', f'--count={1 + (count - 1) % 10}')
      process.communicate(timeout=LIMIT)
      row['killed'] += process.returncode == -signal.SIGKILL
      row['without'] += not _restorable(workdir)
      _judge(workdir, expected, row)
    print(point, dict(row), flush=True)
  return found


def stop(folder: pathlib.Path, expected: str, wanted: int) -> dict[str, dict]:
  """{phase: {'stopped', 'slowest' in s, 'lost', 'other'}}: SIGTERM and SIGINT in turn."""
  found = {phase: collections.Counter(stopped=0, lost=0, other=0) for phase in victim.PHASES}
  for i in range(wanted):
    phase, number = list(victim.PHASES)[i % len(found)], signals.SIGNALS[i // len(found) % 2]
    row, workdir = found[phase], folder / f'{i}'
    clock = time.perf_counter()
    process = start(workdir, f'--phase={phase}', f'--signal={number.name}')
    process.communicate(timeout=LIMIT)
    row['slowest'] = max(row['slowest'], time.perf_counter() - clock)
    row['stopped'] += process.returncode == signals.EXIT_CODE
    # Where the first state was made, a whole checkpoint stands.
    row['without'] += phase != 'starting' and not list(workdir.glob('checkpoints/*/manifest.json'))
    _judge(workdir, expected, row)
  return {phase: dict(row) for phase, row in found.items()}


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


DAMAGES = {
    'truncated': lambda path, chance: os.truncate(path, chance.randrange(path.stat().st_size)),
    'zeroed': lambda path, chance: path.write_bytes(bytes(path.stat().st_size)),
    'one bit flipped': _flip, 'deleted': lambda path, chance: path.unlink(), 'swapped': _swap,
}


def damage(folder: pathlib.Path, whole: pathlib.Path, wanted: int, seed: int) -> dict[str, dict]:
  """{kind: {'cases', 'older', 'silent'}}: the newest checkpoint damaged, the one before it expected."""
  config, chance = victim.config_of(), random.Random(seed)
  recipe = build.recipe(config)
  like = steps.create(recipe.init, recipe.optimizer, build.ema_names(config), 0,
                      sharding.device_mesh())
  found = {kind: collections.Counter(cases=0, older=0, silent=0) for kind in DAMAGES}
  for i in range(wanted):
    workdir, kind = folder / 'damaged', list(DAMAGES)[i % len(DAMAGES)]
    shutil.copytree(whole / 'checkpoints', workdir / 'checkpoints')
    newest, older = sorted(map(int, os.listdir(workdir / 'checkpoints')), reverse=True)[:2]
    files = sorted(path for path in (workdir / f'checkpoints/{newest}').rglob('*')
                   if path.is_file() and path.stat().st_size)
    DAMAGES[kind](chance.choice(files), chance)
    with contextlib.redirect_stdout(None):
      with checkpoint.open_checkpoints(workdir, keep=None) as checkpoints:
        taken = int(checkpoints.restore(like, mend=True).step)
    found[kind]['cases'] += 1
    found[kind]['older' if taken == older else 'silent'] += 1
    shutil.rmtree(workdir)
  return {kind: dict(row) for kind, row in found.items()}


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  for name, count in (('kills', 20), ('points', 1), ('signals', 12), ('damages', 100)):
    parser.add_argument(f'--{name}', type=int, default=count)
  parser.add_argument('--seed', type=int, default=0)
  given = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    # Nobody wants to see the same compilations again and again.
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', f'{folder}/compiled')
    os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
    os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '0')
    finish(folder / 'whole')
    clock = time.perf_counter()
    finish(folder / 'again')
    seconds, expected = time.perf_counter() - clock, digest(folder / 'whole')
    print(f'a run left alone takes {seconds:.1f} s; run twice, it ends alike: '
          f'{digest(folder / "again") == expected}', flush=True)
    print('killed at random:', kill(folder, expected, seconds, given.kills, given.seed), flush=True)
    kill_at(folder, expected, given.points)
    for phase, row in stop(folder, expected, given.signals).items():
      print(f'asked to stop while {phase}:', row)
    for kind, row in damage(folder, folder / 'whole', given.damages, given.seed).items():
      print(f'{kind}:', row)


if __name__ == '__main__':
  main()
