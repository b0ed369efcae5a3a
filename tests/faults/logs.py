"""Whether the log of a run that is killed and stopped has the lines of an undisturbed one."""

import collections
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time

from tensorboardX.proto import event_pb2

from eqflow.training import logging
from eqflow.training.runtime import preemption
from tests.faults import kills, states

CHAINED = 4   # interruptions of one run, at most


def rows(workdir: pathlib.Path) -> list[dict]:
  """The lines of metrics.jsonl, without the numbers that depend on the clock."""
  lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return [{key: value for key, value in line.items() if key not in logging.CLOCKED} for line in lines]


def board(workdir: pathlib.Path) -> dict[tuple[int, str], float]:
  """{(step, name): number} as TensorBoard reads its files: a start drops what came after its step."""
  found = {}
  for path in sorted((workdir / 'tensorboard').iterdir(), key=lambda path: path.stat().st_mtime_ns):
    for event in _events(path.read_bytes()):
      if event.session_log.status == event_pb2.SessionLog.START:
        found = {key: value for key, value in found.items() if key[0] < event.step}
      found |= {(event.step, value.tag): value.simple_value for value in event.summary.value
                if value.tag not in logging.CLOCKED}
  return found


def _events(data):
  # A kill may have truncated the last one.
  while len(data) >= 12:
    end = 16 + int.from_bytes(data[:8], 'little')
    if len(data) < end:
      return
    yield event_pb2.Event.FromString(data[12:end - 4])
    data = data[end:]


def chain(folder: pathlib.Path, expected: pathlib.Path, seconds: float, wanted: int, signals: bool,
          seed: str) -> dict[str, int]:
  """{'killed' or 'stopped', 'lines', 'changed'}: interrupts one run, lets it end, compares its log.

  Instants are random after the first line of a session, within a part of the `seconds` that an
  undisturbed run trains. `changed` counts lines of metrics.jsonl and numbers of TensorBoard that are
  missing, more, or not equal to the last bit.
  """
  chance, workdir = random.Random(seed), folder / 'log'
  found = collections.Counter({'stopped' if signals else 'killed': 0})
  for _ in range(min(wanted, CHAINED)):
    begun, process = len(states.resumed_from(workdir)), kills.start(workdir, '--short')
    while process.poll() is None and not _logged_since(workdir, begun):
      time.sleep(0.002)
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(timeout=chance.uniform(0, seconds / CHAINED))
    if process.poll() is None:
      if signals:
        process.send_signal(chance.choice(preemption.SIGNALS))
      else:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=kills.LIMIT)
    found['stopped'] += process.returncode == preemption.EXIT_CODE
    found['killed'] += process.returncode == -signal.SIGKILL
    if process.returncode == 0:
      break
  kills.finish(workdir, '--short')
  ours, theirs = rows(workdir), rows(expected)
  ours, theirs = ({row['step']: row for row in lines} for lines in (ours, theirs))
  differ = lambda a, b: sum(a.get(key) != b.get(key) for key in {*a, *b})
  found.update(lines=len(ours), changed=differ(ours, theirs) + differ(board(workdir), board(expected)))
  shutil.rmtree(workdir)
  return dict(found)


def _logged_since(workdir, begun):
  """Whether the training after so many has written a line."""
  starts = states.resumed_from(workdir)
  with contextlib.suppress(OSError, ValueError, IndexError):
    last = (workdir / 'metrics.jsonl').read_text().splitlines()[-1]
    return len(starts) > begun and json.loads(last)['step'] > starts[-1]
  return False


def trained_for(workdir: pathlib.Path) -> float:
  """The seconds that the run has trained, of its last line."""
  return json.loads((workdir / 'metrics.jsonl').read_text().splitlines()[-1])['seconds']
