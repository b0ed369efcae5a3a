"""Full disks, limits on file size, and read-only folders."""

import contextlib
import os
import pathlib
import re
import resource
import subprocess
import sys
import time

from eqflow.training import checksums
from tests import ROOT
from tests.faults import states

LIMIT, ROOM = 300, '64m'
# 240 steps of a small network on moons, a checkpoint every 40.
FLAGS = ('--config=configs/toy.py', '--config.model.width=16', '--config.model.depth=1',
         '--config.train.batch=64', '--config.train.num_examples=15360',
         '--config.train.checkpoint_examples=2560', '--config.train.log_examples=2560',
         '--config.sample.num_steps=3', '--config.sample.batch=64', '--config.evaluate.num_samples=64')


def start(workdir: pathlib.Path) -> subprocess.Popen:
  """Starts the command of a user, and captures its stderr."""
  return subprocess.Popen([sys.executable, '-m', 'eqflow.main', *FLAGS, f'--workdir={workdir}'],
                          cwd=ROOT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def mountable() -> bool:
  """Whether this user may mount file systems: the capability CAP_SYS_ADMIN of Linux, bit 21."""
  status = pathlib.Path('/proc/self/status')
  effective = re.search(r'CapEff:\s*(\w+)', status.read_text()) if status.exists() else None
  return bool(effective and int(effective[1], 16) >> 21 & 1)


def _mount(folder, options, *more):
  subprocess.run(['mount', *more, '-o', options, str(folder)], check=True, capture_output=True)


def _mounted(folder):
  """Mounts a small file system. Raises PermissionError if this user may not mount."""
  try:
    _mount(folder, f'size={ROOM}', '-t', 'tmpfs', 'tmpfs')
  except (OSError, subprocess.CalledProcessError) as error:
    raise PermissionError('mounting is not permitted here') from error


def _fill(process, folder):
  space = os.statvfs(folder)
  used = (space.f_blocks - space.f_bfree) * space.f_frsize
  _mount(folder, f'remount,size={used + 4096}')


# {kind: (the part of the run's folder that gets its own file system, None: no part; what keeps the run
# from writing; what lets the next run write again)}.
KINDS = {
    'disk full': ('checkpoints', _fill, lambda folder: _mount(folder, f'remount,size={ROOM}')),
    'files may not grow': (None, lambda process, folder: resource.prlimit(
        process.pid, resource.RLIMIT_FSIZE, (4096, 4096)), lambda folder: None),
    'folder read-only': ('checkpoints', lambda process, folder: _mount(folder, 'remount,ro'),
                         lambda folder: _mount(folder, 'remount,rw')),
    # Also the log and TensorBoard's files.
    'disk of the whole run full': ('', _fill, lambda folder: _mount(folder, f'remount,size={ROOM}')),
}


def hurt(folder: pathlib.Path, expected: str, kind: str) -> dict[str, int]:
  """{'cases', 'unreported', 'broken', 'other'}: one run that cannot write after its first save.

  unreported: no exit code 2 and line that names the newest checkpoint, or the log; broken: that
  checkpoint is damaged; other: the same command then does not end in the state of the undisturbed run.
  Raises PermissionError if this user may not mount.
  """
  own, break_it, repair = KINDS[kind]
  workdir = folder / kind.replace(' ', '_')
  checkpoints = workdir / 'checkpoints'
  place = workdir / (own or '')
  place.mkdir(parents=True)
  with contextlib.ExitStack() as stack:
    if own is not None:
      _mounted(place)
      stack.callback(subprocess.run, ['umount', str(place)], check=True)
    process, clock = start(workdir), time.perf_counter()
    # The first save comes before the step compiles, so well before the second.
    while not states.steps(workdir) and process.poll() is None and time.perf_counter() - clock < LIMIT:
      time.sleep(0.01)
    break_it(process, place)
    _, said = process.communicate(timeout=LIMIT)
    # Threads of orbax may print more after that.
    lines = [line for line in said.splitlines() if line.startswith('eqflow: ')]
    steps = states.steps(workdir)
    reported = process.returncode == 2 and len(lines) == 1 and (
        lines[0].startswith('eqflow: a checkpoint could not be written')
        and f'the newest checkpoint is {steps[-1]};' in lines[0]
        or own == '' and 'metrics.jsonl cannot be written' in lines[0])
    intact = not checksums.damages(checkpoints / str(steps[-1]))
    repair(place)
    process = start(workdir)
    _, again = process.communicate(timeout=LIMIT)
    same = process.returncode == 0 and states.digest(workdir) == expected
  if not (reported and intact and same):
    print(kind, said[-1500:], again[-1500:], flush=True)
  return dict(cases=1, unreported=int(not reported), broken=int(not intact), other=int(not same))


def unbroken(folder: pathlib.Path) -> str:
  """The digest of an undisturbed run."""
  process = start(folder / 'whole')
  _, said = process.communicate(timeout=LIMIT)
  if process.returncode:
    raise RuntimeError(f'exit code {process.returncode}: {said[-2000:]}')
  return states.digest(folder / 'whole')
