"""CPU seconds of the checks before a training, on the demo, in a new process.

  python -m tests.faults.startup
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time

from tests import ROOT, config_file


def measure() -> dict[str, float]:
  """{'what', 'cases', 'slowest'}: the checks of a config, its memory, and the rehearsal, in seconds."""
  done = subprocess.run([sys.executable, '-m', 'tests.faults.startup'], cwd=ROOT, check=True, text=True,
                        capture_output=True)
  return {'what': 'the checks of the demo', 'cases': 1, 'slowest': json.loads(done.stdout)}


def _checks():
  from eqflow.runs import blueprint, rehearsal, room
  from eqflow.runs.run import run_of
  config = config_file('digits').get_config()
  clock = time.process_time()
  with tempfile.TemporaryDirectory() as folder:
    run = run_of(config, pathlib.Path(folder))
    room.check_training(run)
    state = blueprint.first_state(run.config, run.recipe, run.mesh, abstract=True)
    room.check_state(state, run.mesh)
    room.check_saves(run.config, run.workdir, state, 0)
    rehearsal.rehearse(run)
  return round(time.process_time() - clock, 2)


if __name__ == '__main__':
  print(_checks())
