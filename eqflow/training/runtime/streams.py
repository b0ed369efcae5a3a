"""What a program prints: it needs no terminal, its last line is its own, and libraries print to a file.

`begin` makes this hold for the process:
- A stream that is closed, full, broken or not read never stops the program. What it does not take
  within PATIENCE is lost; the log says so once, and `lost` returns why.
- What libraries print, also from C++, goes to workdir/log.txt alone, or to a temporary file before
  there is one. What the program prints is in log.txt too.
- If the process is killed or crashes, a child process prints the last line, which names the log.
Without `begin`, as in a notebook, nothing of this happens.
"""

import atexit
import contextlib
import faulthandler
import io
import os
import pathlib
import re
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
from typing import Any, NamedTuple

PATIENCE = 5.0   # seconds that a stream may block before what it does not take is lost
_CRASH = re.compile(r'^Fatal Python error: (.*)', re.MULTILINE)
_MEMORY = re.compile(r'bad_alloc|out of memory|cannot allocate memory', re.IGNORECASE)
# How JAX says that the coordination of several processes has ended.
_OTHERS = re.compile(r'coordination service|distributed service|coordination agent', re.IGNORECASE)


class Log:
  """The file that descriptor 2 writes to: what libraries print and, in a workdir, all that we print."""

  def __init__(self):
    self.ours = False
    try:
      handle, name = tempfile.mkstemp(prefix='eqflow-', suffix='.txt')
    except OSError:
      handle, name = os.open(os.devnull, os.O_RDWR), os.devnull
    self._open(handle, pathlib.Path(name))

  def _open(self, handle, path):
    os.dup2(handle, 2)
    os.close(handle)
    self.path, self.start, self.said = path, os.fstat(2).st_size, 0

  def add(self, data: bytes) -> None:
    """Writes what the program prints, once the log is in a workdir."""
    if self.ours:
      with contextlib.suppress(OSError):
        self.said += os.write(2, data)

  def move(self, path: pathlib.Path) -> None:
    """Continues in `path`, after what is there."""
    try:
      handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:
      return   # The file for temporary files is as good.
    before, early = self.path, b''
    if self.foreign():
      early = before.read_bytes()
    self._open(handle, path.absolute())
    self.ours = True
    command = f'{time.strftime("%Y-%m-%d %H:%M:%S")} {" ".join(sys.argv)}'
    self.add(f'\n--- {command}\n'.encode(errors='replace'))
    with contextlib.suppress(OSError):
      os.write(2, early)
    _delete(before)

  def foreign(self) -> bool:
    """Whether libraries have printed anything in this session."""
    return os.fstat(2).st_size - self.start > self.said


def _delete(path):
  if path != pathlib.Path(os.devnull):
    with contextlib.suppress(OSError):
      path.unlink()


class Stream(io.TextIOBase):
  """Text to a descriptor: writing neither raises nor blocks for longer than PATIENCE."""

  encoding, errors = 'utf-8', 'surrogateescape'

  def __init__(self, handle: int, name: str, log: Log, lost: str = ''):
    self.handle, self.name, self.log, self.lost = handle, name, log, lost
    self._lock, self._line, self._said = threading.RLock(), '', False

  def write(self, text: str) -> int:
    """Keeps the text until its line ends."""
    with self._lock:
      self._line += text
      if '\n' in text:
        self.flush()
    return len(text)

  def flush(self) -> None:
    """Writes to the descriptor and, unless it is a part of a bar, to the log."""
    with self._lock:
      text, self._line = self._line, ''
      data = text.encode(self.encoding, 'surrogateescape')
      if '\r' not in text and '\x1b' not in text:
        self.log.add(data)
      try:
        self._write(data)
      except OSError as error:
        self.lost = self.lost or error.strerror
      if self.lost and not self._said:
        self.log.add(f'{self.name} cannot be written ({self.lost}): the program goes on\n'.encode())
        self._said = self.log.ours

  def _write(self, data):
    while data:
      # A pipe that is ready takes so many bytes without blocking.
      if not select.select([], [self.handle], [], 0 if self.lost else PATIENCE)[1]:
        raise TimeoutError(None, f'nobody has read it for {PATIENCE:g} s')
      data = data[os.write(self.handle, data[:select.PIPE_BUF]):]

  def writable(self) -> bool:
    return True

  def isatty(self) -> bool:
    return os.isatty(self.handle)

  def fileno(self) -> int:
    return self.handle


class _Program(NamedTuple):
  """The streams of a process, after `begin`."""
  out: Stream
  terminal: Stream
  log: Log
  keeper: Any   # the pipe to the child process that waits for the end


_program = None


def begin() -> None:
  """See above. Call it first, before any file is opened and any thread is started."""
  global _program
  closed = [handle for handle in (0, 1, 2) if not _is_open(handle)]
  for _ in closed:
    # Else a checkpoint could be opened under the number of a closed stream, and get what is printed.
    os.open(os.devnull, os.O_RDWR)
  terminal = os.dup(2)
  log = Log()
  read_end, write_end = os.pipe()
  if os.fork() == 0:
    os.close(write_end)
    _keep(read_end, terminal)
  os.close(read_end)
  lost = lambda handle: 'it is closed' if handle in closed else ''
  _program = _Program(Stream(1, 'standard output', log, lost(1)),
                      Stream(terminal, 'standard error', log, lost(2)), log, write_end)
  sys.stdout = _program.out
  sys.stderr = open(2, 'w', buffering=1, errors='backslashreplace', closefd=False)
  faulthandler.enable(2)
  sys.excepthook = _report
  atexit.register(end)
  _tell(str(log.path))


def _report(kind, error, trace):
  traceback.print_exception(kind, error, trace)
  last(f'{kind.__name__}: {error}')


def _is_open(handle):
  try:
    os.fstat(handle)
  except OSError:
    return False
  return True


def _tell(text):
  with contextlib.suppress(OSError):
    os.write(_program.keeper, os.fsencode(text) + b'\0')


def terminal() -> Any:
  """The stream for what the program says to a person: bars, and its last line."""
  return _program.terminal if _program else sys.stderr


def log_to(path: pathlib.Path) -> None:
  """From here on, the log is `path`."""
  if _program:
    _program.log.move(path)
    _tell(str(_program.log.path))


def lost() -> str:
  """Why a part of what the program printed is lost; '' if nothing is."""
  if not _program:
    return ''
  _program.out.flush()
  return _program.out.lost


def last(line: str) -> None:
  """Prints the last line of the program, which names the log if libraries have printed there."""
  if _program and _program.log.foreign():
    line += f'; more is in {_program.log.path}'
  print(f'eqflow: {" ".join(line.split())}', file=terminal(), flush=True)


def end() -> None:
  """The program has said all: the child process says nothing more. Deletes an empty log."""
  if _program:
    log = _program.log
    _program.out.flush()
    _program.terminal.flush()
    if not log.ours and not log.foreign():
      _delete(log.path)
    _tell('')


def _keep(handle, terminal):
  """The child process: waits for the end of the program, and reports one that nobody could report."""
  for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
  null = os.open(os.devnull, os.O_RDWR)
  for other in (0, 1, 2):
    os.dup2(null, other)
  found = b''
  while part := os.read(handle, 4096):
    found += part
  if path := os.fsdecode(found.split(b'\0')[-2]):
    line = f'eqflow: the process has ended early: {_why(pathlib.Path(path))}\n'
    with contextlib.suppress(OSError):
      os.write(terminal, line.encode(errors='surrogateescape'))
  os._exit(0)


def _why(path):
  try:
    with path.open('rb') as file:
      file.seek(max(0, os.fstat(file.fileno()).st_size - 10**6))
      text = file.read().decode(errors='replace').rpartition('\n--- ')[2]
  except OSError:
    text = ''
  crash = _CRASH.findall(text)
  if not crash:
    if not text:
      _delete(path)
    return ('something killed it, such as kill -9, or the system when memory ran out; run the same '
            'command again')
  why = f'a library crashed ({crash[-1]})'
  if _MEMORY.search(text):
    why = 'memory ran out'
  if _OTHERS.search(text):
    why = 'another process of this run has ended or cannot be reached'
  return f'{why}; what was printed before is in {path}; run the same command again'
