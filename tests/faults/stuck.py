"""How soon a training that is stopped or has a hanging main thread is detected, reported and ended.

  python -m tests.faults.stuck [--times=20] [--seconds=10]   resumes after an interruption

A small training of the digits in two processes. One of them, in turn, is sent SIGSTOP, or its main
thread hangs in C, inside a callback of compiled code. Times are from then until it is reported.
"""

import argparse
import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

from tests import ROOT
from tests.faults import results, tables

KINDS = 'stopped', 'hanging in C'


def run(workdir: pathlib.Path, process: int, port: int, seconds: float, hang: bool) -> None:
  """One of the two processes, which never ends by itself."""
  import ctypes

  import jax

  from eqflow.commands import train
  from eqflow.runs.run import run_of
  from eqflow.training import sharding
  from eqflow.training.runtime import ledger, multihost, watchdog
  from tests.faults import victim
  multihost.join(f'localhost:{port}', 2, process)
  config = victim.config_of().unlock()
  config.train.update(dict(num_examples=10**9, sample_examples=10**9, stuck_seconds=0.0))
  place, calls, book = sharding.place_batch, [], ledger.Ledger()
  watching = contextlib.ExitStack()

  def placed(*given):
    calls.append(1)
    # After the first steps: the timeout here is too short for compilation.
    if len(calls) == 10:
      watching.enter_context(watchdog.watching(workdir, seconds, book.pulse, process=process, count=2))
    if len(calls) == 30:
      print('ready', flush=True)
      if hang:
        wait = lambda: ctypes.CDLL(None).sleep(600) and None
        jax.block_until_ready(jax.jit(lambda: jax.experimental.io_callback(wait, None))())
    return place(*given)

  sharding.place_batch = placed
  train.train(run_of(config.lock(), workdir), book=book)


def start(workdir: pathlib.Path, process: int, port: int, seconds: float,
          hang: bool) -> subprocess.Popen:
  """Starts one of the two processes, in a process group of its own."""
  command = [sys.executable, '-m', 'tests.faults.stuck', f'--workdir={workdir}',
             f'--process={process}', f'--port={port}', f'--seconds={seconds}', *['--hang'] * hang]
  return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          start_new_session=True)


def once(workdir: pathlib.Path, kind: str, seconds: float, victim: int) -> dict[str, float]:
  """{'stopped', 'slowest'; 'late', 'misnamed', 'not ended', 'stackless'} of one fault."""
  hangs = kind == KINDS[1]
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  processes = [start(workdir, i, port, seconds, hang=hangs and i == victim) for i in range(2)]
  try:
    for process in processes:
      while process.stdout.readline() != 'ready\n':
        if process.poll() is not None:
          raise RuntimeError(process.stderr.read()[-3000:])
    clock = time.perf_counter()
    if not hangs:
      time.sleep(seconds / 5)   # Each has read a heartbeat of the other.
      clock = time.perf_counter()
      processes[victim].send_signal(signal.SIGSTOP)
    reporter = processes[victim if hangs else 1 - victim]
    # The report comes before the exit, which waits for the reports of the others.
    path = workdir / f'stuck-{processes.index(reporter)}.txt'
    while not path.exists() and time.perf_counter() - clock < 3 * seconds:
      time.sleep(0.02)
    took = time.perf_counter() - clock
    _, said = reporter.communicate(timeout=3 * seconds + 60)
    named = f'process {victim} (host ' in said.partition(', pid')[0]
    stacks = 'most recent call first' in said and '_watch' in said
    return {'stopped': 1, 'slowest': round(took, 2), 'late': int(took > seconds),
            'misnamed': int(not named), 'not ended': int(reporter.returncode != 70),
            'stackless': int(not stacks)}
  finally:
    for process in processes:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
      process.communicate()


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--times', type=int, default=20, help='faults of each kind')
  parser.add_argument('--seconds', type=float, default=10.0, help='what config.train.stuck_seconds is')
  parser.add_argument('--workdir', type=pathlib.Path, help=argparse.SUPPRESS)
  parser.add_argument('--process', type=int, help=argparse.SUPPRESS)
  parser.add_argument('--port', type=int, help=argparse.SUPPRESS)
  parser.add_argument('--hang', action='store_true', help=argparse.SUPPRESS)
  given = parser.parse_args()
  if given.workdir:
    run(given.workdir, given.process, given.port, given.seconds, given.hang)
    return
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    # Compile once for all runs.
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', f'{folder}/compiled')
    os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

    def case(i, _):
      kind, workdir = KINDS[i % 2], folder / f'{i}'
      workdir.mkdir()
      what = f'{kind}, {given.seconds:g} s allowed'
      return dict(what=what) | once(workdir, kind, given.seconds, victim=i // 2 % 2)

    rows = results.resume('stuck', 2 * given.times, case)
    for what, row in results.summed(rows).items():
      print(f'{what}: {row}', flush=True)
  tables.README.write_text(tables.filled(tables.README.read_text()))


if __name__ == '__main__':
  main()
