"""Kills and stops victims, at random and at named points, and judges whether they resume."""

import collections
import contextlib
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

from eqflow.training.runtime import preemption
from tests import ROOT
from tests.faults import states, victim

DEVICES = 8    # of every run, unless XLA_FLAGS is set
LIMIT = 300    # seconds that any run may take
CHAINED = 12   # kills of one run, at most


def start(workdir: pathlib.Path, *flags: str) -> subprocess.Popen:
  """A victim in a process group of its own."""
  return subprocess.Popen(
      [sys.executable, '-m', 'tests.faults.victim', f'--workdir={workdir}', *flags], cwd=ROOT,
      # Caches every compilation: a run should reach its steps fast.
      env={'XLA_FLAGS': f'--xla_force_host_platform_device_count={DEVICES}'} | os.environ | {
          'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'},
      text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def finish(workdir: pathlib.Path, *flags: str) -> float:
  """Resumes the run to its end; returns the seconds. Raises RuntimeError, with stderr, if it fails."""
  clock, process = time.perf_counter(), start(workdir, *flags)
  _, said = process.communicate(timeout=LIMIT)
  if process.returncode:
    raise RuntimeError(f'{workdir} did not resume: exit code {process.returncode}\n{said[-3000:]}')
  return time.perf_counter() - clock


def chain(folder: pathlib.Path, expected: str, seconds: float, most: int, seed: str,
          *flags: str) -> dict[str, int]:
  """{'killed', 'runs', 'lost', 'other', 'unsaved', 'regressed'}: kills one run up to `most` times,
  then lets it end.

  Instants are random within the time of an undisturbed run; a run that has ended by then is not killed.
  `regressed` counts starts that resumed from an older step than the newest undamaged checkpoint.
  """
  chance, workdir = random.Random(seed), folder / 'run'
  found = collections.Counter(killed=0, lost=0, other=0, unsaved=0, regressed=0, runs=1)
  stood = []
  for _ in range(min(most, CHAINED)):
    process = start(workdir, *flags)
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.communicate(timeout=chance.uniform(0, seconds))
    if process.poll() is not None:
      break
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    _note(workdir, found, stood)
  return _judged(workdir, expected, found, *flags, stood=stood)


def _note(workdir, found, stood, least=-1):
  """Counts a kill, and appends (trainings started so far, the newest undamaged step or -1) to `stood`.

  `unsaved` counts kills that left only older checkpoints than a kill before, or than step `least`.
  """
  whole = max(states.whole(workdir), default=-1)
  found.update(killed=1, unsaved=whole < max((least, *(step for _, step in stood))))
  stood.append((len(states.resumed_from(workdir)), whole))


def _judged(workdir, expected, found, *flags, stood=()):
  try:
    finish(workdir, *flags)
    found['other'] += states.digest(workdir) != expected
    begun = states.resumed_from(workdir)
    found['regressed'] += sum(begun[count] < step for count, step in stood if count < len(begun))
  except (RuntimeError, subprocess.TimeoutExpired) as error:
    found['lost'] += 1
    print(error, flush=True)
  shutil.rmtree(workdir, ignore_errors=True)
  return {name: int(count) for name, count in found.items()}


def at_point(folder: pathlib.Path, expected: str, point: str, count: int,
             *flags: str) -> dict[str, int]:
  """{'killed', 'lost', 'other', 'unsaved', 'regressed'}: kills a run at the count-th time that it
  reaches a point."""
  workdir = folder / 'point'
  found = collections.Counter(killed=0, lost=0, other=0, unsaved=0, regressed=0)
  stood = []
  process = start(workdir, f'--point={point}', f'--count={count}', *flags)
  process.communicate(timeout=LIMIT)
  if process.returncode == -signal.SIGKILL:
    # There must be a checkpoint after the first save, or once one has its name.
    _note(workdir, found, stood, least=0 if count > 1 or states.steps(workdir) else -1)
  return _judged(workdir, expected, found, *flags, stood=stood)


def stopped(folder: pathlib.Path, expected: str, phase: str,
            number: signal.Signals) -> dict[str, float]:
  """{'stopped', 'slowest', 'lost', 'other', 'unsaved', 'regressed'}: one signal in one phase of a run.

  `slowest` is the time from the signal to the end of the process, in s; `unsaved` counts runs that left
  no undamaged checkpoint or, while stepping, none of the step in which the signal came.
  """
  found, workdir = collections.Counter(stopped=0, lost=0, other=0, regressed=0), folder / 'stopped'
  process = start(workdir, f'--phase={phase}', f'--signal={number.name}')
  _, said = process.communicate(timeout=LIMIT)
  seconds = time.time() - float(re.search(r'signalled at ([\d.]+)', said)[1])
  # After the start the first state is saved; while stepping, this step or the next.
  newest = max(states.whole(workdir), default=-1)
  least = {'starting': -1, 'stepping': victim.SIGNALLED}.get(phase, 0)
  found.update(stopped=process.returncode == preemption.EXIT_CODE,
               unsaved=newest < least or phase == 'stepping' and newest > least + 2)
  stood = [(len(states.resumed_from(workdir)), newest)]
  return _judged(workdir, expected, found, stood=stood) | {'slowest': round(seconds, 1)}


def phase_of(i: int) -> tuple[str, signal.Signals]:
  """The phase and the signal of the i-th case: all phases in turn, then with the next signal."""
  phases = list(victim.PHASES)
  return phases[i % len(phases)], preemption.SIGNALS[i // len(phases) % len(preemption.SIGNALS)]


def point_of(i: int) -> tuple[str, int]:
  """The point and the count of the i-th case: all points in turn, a later save in each round."""
  points = list(victim.POINTS)
  # Some points are reached only ten times in a run.
  return points[i % len(points)], 1 + i // len(points) % 10
