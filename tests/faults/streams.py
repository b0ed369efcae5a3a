"""A training, and commands after it, with output that goes nowhere."""

import pathlib
import subprocess
import sys

from tests import ROOT
from tests.faults import disk, states

LIMIT = 300
# {how the streams are: (the redirections, whether stdout loses what is printed)}.
KINDS = {
    'stdout closed': ('exec {} >&-', True),
    'stderr closed': ('exec {} 2>&-', False),
    'all streams closed': ('exec {} <&- >&- 2>&-', True),
    'stdout full': ('exec {} >/dev/full', True),
    'both streams full': ('exec {} >/dev/full 2>&1', True),
    'read once': ('{} | head -1; exit ${{PIPESTATUS[0]}}', True),
    'both read once': ('{} 2>&1 | head -1; exit ${{PIPESTATUS[0]}}', True),
}
MODES = ['--mode=sample', '--num_samples=4'], ['--mode=evaluate'], ['--mode=plan', '--topology=cpu:1']


def _run(wrap, workdir, *more):
  command = [sys.executable, '-m', 'eqflow.main', *disk.FLAGS, f'--workdir={workdir}', *more]
  return subprocess.run(['bash', '-c', wrap.format(' '.join(command))], cwd=ROOT, text=True,
                        capture_output=True, timeout=LIMIT)


def without(folder: pathlib.Path, expected: str, kind: str) -> dict[str, int]:
  """{'cases', 'stopped', 'other', 'unsaid', 'unreported'}: one training, then each of MODES.

  stopped: the training has another exit code than 0; other: it ends in another state; unsaid: its log
  does not say once that stdout is lost. unreported: a command after it with an exit code other than 74
  where what it prints is lost, and not 0 where it is not.
  """
  wrap, lost = KINDS[kind]
  workdir = folder / kind.replace(' ', '_')
  done = _run(wrap, workdir)
  log = (workdir / 'log.txt').read_text() if (workdir / 'log.txt').exists() else ''
  said = log.count('standard output cannot be written') == lost
  codes = [_run(wrap, workdir, *mode).returncode for mode in MODES]
  # What fits into the pipe before its reader has gone is not seen to be lost.
  allowed = {0, 74} if 'read' in kind else {74} if lost else {0}
  found = dict(
      cases=1, stopped=int(done.returncode != 0), other=int(states.digest(workdir) != expected),
      unsaid=int(not said), unreported=sum(code not in allowed for code in codes))
  if any(found[key] for key in found if key != 'cases'):
    print(kind, done.returncode, codes, done.stderr[-500:], log[-500:], flush=True)
  return found
