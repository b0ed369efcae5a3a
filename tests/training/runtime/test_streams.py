"""A program needs no terminal, and its last line is its own, however it ends."""

import contextlib
import os
import pty
import subprocess
import sys
import time

import pytest

from tests import ROOT

FLOOD = 'a line of a library\n' * 300


def program(tmp_path, body, wrap='{}', **streams):
  """Runs `body` after `begin` in a shell; `wrap` has the redirections. Its log is tmp_path/log.txt."""
  path = tmp_path / 'program.py'
  path.write_text(f"""
import ctypes, os, pathlib, signal, sys, time
from eqflow.training.runtime import preemption, streams
folder = pathlib.Path({str(tmp_path)!r})
streams.begin()
streams.PATIENCE = 0.3
preemption.answer()
streams.log_to(folder / 'log.txt')
{body}
""")
  command = wrap.format(f'{sys.executable} {path}')
  return subprocess.Popen(['bash', '-c', command], cwd=ROOT, text=True,
                          env=os.environ | {'PYTHONPATH': str(ROOT)}, **streams)


TALKS = """
for i in range(2_000):
  print('line', i, '.' * 70)
  streams.terminal().write('\\rbar' + '.' * 70)
with open(folder / 'saved', 'w') as file:
  file.write(streams.lost())
streams.last('ended')
preemption.exit_now(0)
"""

# {how the streams are: (redirections, why what is printed is lost)}.
BROKEN = {
    'stdout closed': ('exec {} >&-', 'it is closed'),
    'stderr closed': ('exec {} 2>&-', ''),
    'all closed': ('exec {} <&- >&- 2>&-', 'it is closed'),
    'stdout full': ('exec {} >/dev/full', 'No space left on device'),
    'both full': ('exec {} >/dev/full 2>&1', 'No space left on device'),
    'read once': ('set -o pipefail; {} | head -1', 'Broken pipe'),
    'both read once': ('set -o pipefail; {} 2>&1 | head -1', 'Broken pipe'),
    'not read': ('set -o pipefail; {} 2>&1 | sleep 3', 'nobody has read it for 0.3 s'),
    'in order': ('exec {}', ''),
}


@pytest.mark.parametrize('kind', BROKEN)
def test_a_program_goes_on_without_its_streams_and_says_so_once_in_its_log(tmp_path, kind):
  wrap, why = BROKEN[kind]
  process = program(tmp_path, TALKS, wrap, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  process.communicate(timeout=30)
  assert process.returncode == 0
  assert (tmp_path / 'saved').read_text() == why
  log = (tmp_path / 'log.txt').read_text()
  assert log.count(f'standard output cannot be written ({why})') == bool(why)
  assert all(f'line {i} ' in log for i in range(2_000)) and 'bar' not in log


def test_a_program_goes_on_when_its_terminal_goes_away(tmp_path):
  ours, theirs = pty.openpty()
  process = program(tmp_path, """
print('ready')
while os.isatty(1) and not (folder / 'gone').exists():
  time.sleep(0.01)
""" + TALKS, 'exec {}', stdin=theirs, stdout=theirs, stderr=theirs)
  os.close(theirs)
  assert b'ready' in os.read(ours, 100)
  os.close(ours)
  (tmp_path / 'gone').touch()
  assert process.wait(timeout=30) == 0, (tmp_path / 'log.txt').read_text()[-2000:]
  assert (tmp_path / 'saved').read_text() == 'Input/output error'


def test_a_file_opened_later_does_not_get_what_is_printed(tmp_path):
  process = program(tmp_path, """
with open(folder / 'checkpoint', 'w') as file:
  print('printed')
  print('printed', file=sys.stderr)
  os.write(1, b'printed')
  os.write(2, b'printed')
""", 'exec {} <&- >&- 2>&-')
  assert process.wait(timeout=30) == 0 and (tmp_path / 'checkpoint').read_text() == ''


# {how it ends: (what it does, its exit code or signal, what the last line says)}.
ENDS = {
    'killed': ('os.kill(os.getpid(), signal.SIGKILL)', -9, 'something killed it'),
    'aborted': ('os.abort()', -6, 'a library crashed (Aborted)'),
    'crashed': ('ctypes.string_at(0)', -11, 'a library crashed (Segmentation fault)'),
    'asked to quit': ('os.kill(os.getpid(), signal.SIGQUIT)', -3, 'something killed it'),
    'another process ended': ('os.write(2, b"the JAX distributed service has failed\\n"); os.abort()',
                              -6, 'another process of this run has ended'),
    'no memory left': ('os.write(2, b"what(): std::bad_alloc\\n"); os.abort()', -6, 'memory ran out'),
    'an error': ('raise KeyError("x")', 1, "KeyError: 'x'"),
    'memory': ('raise MemoryError("too much")', 1, 'MemoryError: too much'),
    'hung up': ('os.kill(os.getpid(), signal.SIGHUP); time.sleep(9)', 75, 'stopped by SIGHUP'),
    'rejected': ('streams.last("give a folder"); sys.exit(2)', 2, 'give a folder'),
}


@pytest.mark.parametrize('kind', ENDS)
def test_the_last_line_is_ours_and_what_libraries_print_is_in_the_log(tmp_path, kind):
  what, code, words = ENDS[kind]
  flood = f'os.write(2, {FLOOD!r}.encode()); print({FLOOD!r}, file=sys.stderr, end="")\n'
  process = program(tmp_path, flood + what, 'exec {}', stderr=subprocess.PIPE)
  _, said = process.communicate(timeout=30)
  assert process.returncode == code, said
  lines = said.splitlines()
  assert len(lines) == 1 and lines[0].startswith('eqflow: ') and words in lines[0], said
  log = (tmp_path / 'log.txt').read_text()
  assert log.count('a line of a library') == 600
  assert str(tmp_path / 'log.txt') in lines[0] or kind in ('killed', 'asked to quit')


def test_a_program_that_ends_well_says_nothing_and_leaves_no_temporary_file(tmp_path):
  for body, count in (('pass', 0), ('os.write(2, b"a library")', 1)):
    path = tmp_path / 'end.py'
    path.write_text('import os\nfrom eqflow.training.runtime import streams\nstreams.begin()\n' + body)
    done = subprocess.run([sys.executable, path], cwd=ROOT, text=True, capture_output=True, timeout=30,
                          env=os.environ | {'PYTHONPATH': str(ROOT), 'TMPDIR': str(tmp_path)})
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
    assert len(list(tmp_path.glob('eqflow-*.txt'))) == count


def test_the_child_process_ends_with_the_program(tmp_path):
  process = program(tmp_path, 'print("ready")\ntime.sleep(60)', 'exec {}', stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE)
  assert process.stdout.readline() == 'ready\n'
  children = (f'/proc/{process.pid}/task/{process.pid}/children')
  if not os.path.exists(children):
    pytest.skip('the system does not list the children of a process')
  with open(children) as file:
    child = int(file.read())
  process.kill()
  process.communicate(timeout=30)
  clock = time.monotonic()
  with contextlib.suppress(FileNotFoundError):
    while open(f'/proc/{child}/stat').read().split()[2] != 'Z':
      assert time.monotonic() - clock < 5, 'it is still there'
      time.sleep(0.01)
