"""Ends a run that makes no progress, and reports which process is stuck and where.

A thread polls, twenty times in the time allowed, whether the main loop has made progress. Each of
several processes also writes workdir/heartbeats/<process> and reads the files of the others, to find
one that was stopped. Every process measures times between its own polls: clocks are never compared.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import faulthandler
import json
import os
import pathlib
import socket
import threading
import time

from eqflow.training.runtime import preemption, streams

# os.EX_SOFTWARE: the same command resumes the run, but it may get stuck again.
EXIT_CODE = 70
# These report no progress while they run, as a compilation, and get ALLOWANCE times the timeout.
PATIENT, ALLOWANCE = ('start', 'compile', 'save', 'evaluate', 'restore'), 6
LOOKS = 20
# The fraction of the time allowed after which a process is reported, so that it ends in time.
_FRACTION = 0.85
_RECORD = 512   # bytes, overwritten in place, which works on a full disk too


@dataclasses.dataclass
class _Known:
  """The last heartbeat of a process, and for how many seconds it has not changed."""
  record: dict
  heard: bool            # False while the heartbeat may be a file of an earlier session
  silent: float = 0.0    # since the last heartbeat
  still: float = 0.0     # since the main loop made progress


class Watch:
  """How long each process of a run has sent no heartbeat, or has made no progress."""

  def __init__(self, seconds: float):
    self.limit, self._known, self._looked = _FRACTION * seconds, {}, False

  def look(self, elapsed: float, found: dict[int, dict]) -> list[str]:
    """A line for each stuck process of `found`, {process: heartbeat}, `elapsed` s after the last poll.

    A process without a heartbeat has ended. One found on the first poll may be stale. While any process
    is in one of PATIENT, all get the longer timeout, since the others may wait for it.
    """
    for process, record in found.items():
      self._hear(process, record, elapsed)
    self._known, self._looked = {process: self._known[process] for process in found}, True
    heard = [known for known in self._known.values() if known.heard]
    silent = [known for known in heard if known.silent > self.limit]
    if silent:
      return [f'{_name(known)} has sent no heartbeat for {known.silent:.0f} s' for known in silent]
    if any(known.silent > self.limit / 3 for known in heard):
      return []   # The others may be waiting for this one.
    limit = self.limit * max((ALLOWANCE if known.record['doing'] in PATIENT else 1
                              for known in heard), default=1)
    # A process that waits is not at an earlier step: report the lowest step first.
    still = sorted((known for known in heard if known.still > limit),
                   key=lambda known: (known.record['step'], -known.still))
    return [f'{_name(known)} has made no progress for {known.still:.0f} s' for known in still]

  def unheard(self, count: int) -> list[int]:
    """The processes, of `count`, that have not started or have ended."""
    return [process for process in range(count)
            if process not in self._known or not self._known[process].heard]

  def _hear(self, process, record, elapsed):
    known = self._known.setdefault(process, _Known(record, heard=self._looked))
    if record == known.record:
      known.silent, known.still = known.silent + elapsed, known.still + elapsed
      return
    moved = any(record[key] != known.record[key] for key in ('host', 'pid', 'beats'))
    known.still = 0.0 if moved else known.still + elapsed
    known.record, known.heard, known.silent = record, True, 0.0


def _name(known):
  record = known.record
  return (f'process {record["process"]} (host {record["host"]}, pid {record["pid"]}), in '
          f'{record["doing"]!r} at step {record["step"]:,},')


@contextlib.contextmanager
def watching(workdir: pathlib.Path, seconds: float, pulse: Callable[[], tuple[int, str, int]], *,
             process: int = 0, count: int = 1) -> Iterator[None]:
  """Inside, ends this process if it or another of `count` is stuck for `seconds`; 0: never.

  pulse() returns (beats, doing, step): beats changes whenever the main loop has made progress, doing
  names what it does. Writes the stuck processes and the stacks of all threads to stderr and to
  workdir/stuck-<process>.txt, kills child processes and exits with EXIT_CODE.
  """
  if not seconds:
    yield
    return
  closed = threading.Event()
  folder = workdir / 'heartbeats' if count > 1 else None
  thread = threading.Thread(target=_watch, daemon=True, args=(
      workdir, folder, seconds, pulse, process, count, closed))
  thread.start()
  try:
    yield
  finally:
    closed.set()
    # With a timeout: the thread may be writing to a disk that is gone.
    thread.join(10)
  # After an exception the file stays: the others wait for this process, and report it.
  if folder:
    (folder / str(process)).unlink(missing_ok=True)


def _watch(workdir, folder, seconds, pulse, process, count, closed):
  every, watch, looks, last = seconds / LOOKS, Watch(seconds), 0, time.monotonic()
  host, pid = socket.gethostname(), os.getpid()
  others = [other for other in range(count) if other != process] if folder else []
  watch.look(0.0, _read(folder, others))
  while not closed.wait(every):
    beats, doing, step = pulse()
    looks, now = looks + 1, time.monotonic()
    record = dict(process=process, host=host, pid=pid, looks=looks, beats=beats, doing=doing, step=step)
    found = {process: record}
    if folder:
      _write(folder / str(process), record)
      found |= _read(folder, others)
    # If this process was stopped itself, it does not know how long the others were.
    stuck = watch.look(min(now - last, 3 * every), found)
    last = now
    if stuck and not closed.is_set():
      _end(stuck, watch.unheard(count), workdir / f'stuck-{process}.txt', seconds, every)


def _write(path, record):
  data = json.dumps(record).encode().ljust(_RECORD)
  with contextlib.suppress(OSError):
    path.parent.mkdir(exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
      os.pwrite(handle, data, 0)
    finally:
      os.close(handle)


def _read(folder, processes):
  found = {}
  for process in processes:
    # No file: not started, or ended. A file that is half written is read again on the next poll.
    with contextlib.suppress(OSError, ValueError):
      found[process] = json.loads((folder / str(process)).read_text())
  return found


def _end(stuck, unheard, path, seconds, every):
  # stderr or the disk may block too: exit without them if need be.
  last = threading.Timer(30 + 4 * every, os._exit, (EXIT_CODE,))
  last.daemon = True
  last.start()
  lines = [*(f'also {line}' for line in stuck[1:]),
           *(f'process {process} has not started, or has ended' for process in unheard),
           f'stuck, exiting (config.train.stuck_seconds={seconds:g}): {stuck[0]} its stacks and those '
           f'of all threads are in {path}; run the same command again to resume']
  with contextlib.suppress(OSError), path.open('wb') as file:
    file.write('\n'.join([*lines, '']).encode())
    file.flush()
    faulthandler.dump_traceback(file)
  with contextlib.suppress(OSError):
    faulthandler.dump_traceback(2)
  for line in lines:
    streams.last(line)
  # The others detect the same and write their stacks, before JAX ends them with this process.
  time.sleep(2 * every)
  preemption.exit_now(EXIT_CODE)
