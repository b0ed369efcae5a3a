"""Several processes of one run compute the same, stop together, and can resume in fewer processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from eqflow.runs import claim
from tests import ROOT

pytestmark = pytest.mark.long
FLAGS = [
    '--config=configs/digits.py:flow', '--config.model.width=16', '--config.model.depth=1',
    '--config.model.heads=2', '--config.train.batch=64', '--config.train.num_examples=3200',
    '--config.train.log_examples=64', '--config.train.sample_examples=1600',
    '--config.train.checkpoint_examples=640', '--config.sample.batch=64', '--config.sample.num_steps=3',
    '--config.evaluate.num_samples=64', '--config.ema.stds=(0.05,0.1)',
    '--config.ema.snapshot_examples=640']


def started(workdir, processes, devices, *more):
  """Starts the processes of one run, each with `devices`."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  environment = os.environ | {'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}'}
  ours = ['--distributed', f'--coordinator=localhost:{port}', f'--num_processes={processes}']
  return [subprocess.Popen(
      [sys.executable, '-m', 'eqflow.main', f'--workdir={workdir}', *FLAGS, *more,
       *([*ours, f'--process_id={i}'] if processes > 1 else [])],
      cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
      for i in range(processes)]


def ended(processes):
  """(what each printed, their exit codes)."""
  said = [process.communicate(timeout=400)[0] for process in processes]
  return said, [process.returncode for process in processes]


def last(said):
  """The last line of what a process printed."""
  return said.strip().splitlines()[-1]


def losses(workdir):
  return np.array([json.loads(line)['loss'] for line in
                   (workdir / 'metrics.jsonl').read_text().splitlines()])


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """The workdir of a run in one process of eight devices."""
  workdir = tmp_path_factory.mktemp('alone')
  said, codes = ended(started(workdir, 1, 8))
  assert codes == [0], said
  return workdir


@pytest.mark.parametrize('mesh', ['data', 'fsdp'])
def test_two_processes_of_four_devices_compute_like_one_of_eight(tmp_path, alone, mesh):
  said, codes = ended(started(tmp_path, 2, 4, *(
      ['--config.mesh.data=1', '--config.mesh.fsdp=8'] if mesh == 'fsdp' else [])))
  assert codes == [0, 0], said
  worst = abs(losses(tmp_path) / losses(alone) - 1).max()
  print(f'two processes, {mesh}: {worst:.1e}')
  assert len(losses(alone)) == 50 and worst < 1e-6, f'50 losses differ by {worst:.1e}'
  with np.load(tmp_path / 'samples.npz') as ours, np.load(alone / 'samples.npz') as theirs:
    assert abs(ours['samples'] - theirs['samples']).max() < 1e-4
  assert 'of 3,200 examples' in said[0] and 'of 3,200 examples' not in said[1], 'two logs'
  assert len(list((tmp_path / 'snapshots').glob('*.safetensors'))) == 5


def test_a_signal_to_one_process_stops_both_and_the_run_resumes_in_one(tmp_path, alone):
  processes = started(tmp_path, 2, 4)
  while not (tmp_path / 'checkpoints/10').exists():
    time.sleep(0.05)
    assert processes[0].poll() is None, ended(processes)[0]
  processes[1].send_signal(signal.SIGTERM)
  said, codes = ended(processes)
  assert codes == [75, 75], '\n'.join(said)
  assert 'stopped by a signal to another process' in said[0] and 'stopped by SIGTERM' in said[1]
  said, codes = ended(started(tmp_path, 1, 4))
  assert codes == [0] and 'resuming from step' in said[0], said
  assert abs(losses(tmp_path) / losses(alone) - 1).max() < 1e-6


def test_flags_of_several_processes_are_checked(tmp_path):
  command = [sys.executable, '-m', 'eqflow.main', f'--workdir={tmp_path}', *FLAGS]
  for flags, message in (
      (['--num_processes=2'], '--num_processes is for one of several processes'),
      (['--distributed'], '--distributed with --coordinator=None'),
      (['--distributed', '--coordinator=localhost'], '--coordinator=localhost: give host:port'),
      (['--distributed', '--mode=sample'], '--distributed=True is for --mode=train or evaluate')):
    found = subprocess.run(command + flags, cwd=ROOT, text=True, capture_output=True, timeout=100)
    assert found.returncode == 2 and message in found.stderr, found.stderr


def test_an_error_of_process_0_ends_all_processes(tmp_path):
  with claim.locked(tmp_path, 'training in', '--workdir'):
    clock = time.monotonic()
    said, codes = ended(started(tmp_path, 2, 4))
  assert 'another process is training in' in last(said[0]) and codes[0] == 2, said[0]
  assert last(said[1]).startswith('eqflow: ') and codes[1], said[1]
  assert time.monotonic() - clock < 120


def test_all_processes_say_why_a_config_is_rejected(tmp_path):
  said, codes = ended(started(tmp_path / 'run', 2, 4, '--config.train.batch=60'))
  assert codes == [2, 2], said
  assert all(last(text).startswith('eqflow: config.train.batch=60 ') for text in said), said
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('dies', [0, 1])
def test_a_process_that_dies_is_reported_by_the_other_in_its_last_line(tmp_path, dies):
  processes = started(tmp_path, 2, 4, '--config.train.num_examples=640000')
  while not (tmp_path / 'checkpoints/10').exists():
    time.sleep(0.05)
    assert processes[0].poll() is None, ended(processes)[0]
  processes[dies].kill()
  said, codes = ended(processes)
  line = last(said[1 - dies])
  assert line.startswith('eqflow: ') and 'another process of this run has ended' in line, said
  assert codes[1 - dies] and codes[dies] == -signal.SIGKILL
  assert not [text for text in said if 'Traceback' in text]
