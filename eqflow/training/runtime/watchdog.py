"""A run that no longer moves is found, said where, and ended, instead of being paid for.

A thread looks, twenty times in the time allowed, whether the main loop has moved. Of several processes
each writes workdir/heartbeats/<process> as often, and reads those of the others: one that says nothing
any more is found by them. Times are the reader's own, between two of its looks: no clocks are compared.
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

from eqflow.training.runtime import preemption

# os.EX_SOFTWARE: the same command goes on, but may come to be stuck again.
EXIT_CODE = 70
# What may take so many times longer without a sign, of which there is none within a compilation.
PATIENT, ALLOWANCE = ('start', 'compile', 'save', 'evaluate', 'restore'), 6
LOOKS = 20
# Found later than after this share of the time allowed, and before all of it is over.
_SHARE = 0.85
_RECORD = 512   # bytes: written over in place, so that a full disk silences nobody


@dataclasses.dataclass
class _Known:
  """What was last heard of a process, and for how many seconds that has been so."""
  record: dict
  heard: bool            # and not only found there, as what an earlier session has left is
  silent: float = 0.0
  still: float = 0.0     # its main loop


class Watch:
  """Who of a run's processes has been silent, or has a main loop that is still, and for how long."""

  def __init__(self, seconds: float):
    self.limit, self._known, self._looked = _SHARE * seconds, {}, False

  def look(self, elapsed: float, found: dict[int, dict]) -> list[str]:
    """Lines that name the stuck of `found`, {process: record}, `elapsed` s after the look before.

    A process that is not found has ended; a record of the first look may be of one that has. While one
    is in what takes long, the others may wait for it.
    """
    for process, record in found.items():
      self._hear(process, record, elapsed)
    self._known, self._looked = {process: self._known[process] for process in found}, True
    heard = [known for known in self._known.values() if known.heard]
    silent = [known for known in heard if known.silent > self.limit]
    if silent:
      return [f'{_name(known)} has not been heard of for {known.silent:.0f} s' for known in silent]
    if any(known.silent > self.limit / 3 for known in heard):
      return []   # It may be the one that the others wait for.
    limit = self.limit * max((ALLOWANCE if known.record['doing'] in PATIENT else 1
                              for known in heard), default=1)
    # Who waits for another is not behind it.
    still = sorted((known for known in heard if known.still > limit),
                   key=lambda known: (known.record['step'], -known.still))
    return [f'{_name(known)} has not moved for {known.still:.0f} s' for known in still]

  def unheard(self, count: int) -> list[int]:
    """Those of `count` processes that have not begun, or have ended."""
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
  """Within, this process is ended where it or another of `count` is stuck for `seconds`; 0: never.

  pulse() is (beats, doing, step): beats another number whenever the main loop has moved, and doing what
  it does. The end is with EXIT_CODE, after who is stuck and the stacks of all threads here were
  written to stderr and to workdir/stuck-<process>.txt; it kills the processes started by this one.
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
    # Not for ever: it may be writing to a disk that is gone.
    thread.join(10)
  # Left by an exception it stays: the others wait in vain for this one, and name it.
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
    # Whoever was stopped himself does not know how long the others were.
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
    # Where there is none, it has not begun or has ended; one that is half written comes again.
    with contextlib.suppress(OSError, ValueError):
      found[process] = json.loads((folder / str(process)).read_text())
  return found


def _end(stuck, unheard, path, seconds, every):
  # Whatever is stuck may hold stderr, or the disk: the end waits for neither.
  last = threading.Timer(30 + 4 * every, os._exit, (EXIT_CODE,))
  last.daemon = True
  last.start()
  lines = [f'eqflow: stuck, and ended (config.train.stuck_seconds={seconds:g}): {stuck[0]}',
           *(f'eqflow: also {line}' for line in stuck[1:]),
           *(f'eqflow: process {process} has not begun, or has ended' for process in unheard),
           f'eqflow: the same command goes on from the last checkpoint; stacks, also in {path}:', '']
  text = '\n'.join(lines).encode()
  with contextlib.suppress(OSError), path.open('wb') as file:
    file.write(text)
    file.flush()
    faulthandler.dump_traceback(file)
  os.write(2, text)
  faulthandler.dump_traceback(2)
  # The others find the same, and say where they are, before this end ends them.
  time.sleep(2 * every)
  preemption.leave(EXIT_CODE)
