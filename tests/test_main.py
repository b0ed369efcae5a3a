"""The command line: what is misspelt, mistyped or missing is refused in one line, with exit code 2."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests import ROOT

DIGITS = '--config=configs/digits.py'
TINY = ['--config.model.width=16', '--config.model.depth=1', '--config.model.heads=2',
        '--config.train.batch=16', '--config.train.num_examples=32', '--config.sample.num_steps=2',
        '--config.sample.batch=16', '--config.evaluate.num_samples=16']


def eqflow(*flags):
  return subprocess.run([sys.executable, '-m', 'eqflow.main', *map(str, flags)], cwd=ROOT,
                        capture_output=True, text=True, timeout=300)


REFUSED = [
    ([DIGITS, '--config.trian.batch=32'], ['trian', 'train']),
    ([DIGITS, '--config.train.batch=big'], ['config.train.batch=big', 'int']),
    ([DIGITS, '--config.optimizer.rate=fast'], ['config.optimizer.rate=fast', 'float']),
    (['--config=configs/digits.py:qm'], ["'qm'", "['blind_flow', 'edm', 'edm2', 'eps'"]),
    (['--config=configs/nothing.py'], ['configs/nothing.py']),
    ([DIGITS, '--mode=tarin'], ['mode', 'train', 'evaluate', 'sample']),
    ([DIGITS, '--config.process.name=linaer'], ["config.process.name='linaer'", 'cosine']),
    ([DIGITS, '--config.train.batch=0'], ['config.train.batch=0']),
    ([DIGITS, '--config.data.name=nothing', '--config.data.dir=/nowhere'],
     ['nothing', '/nowhere', 'python -m eqflow.data.prepare']),
    ([DIGITS, '--config.data.name=folder', '--config.data.dir=/nowhere'], ['/nowhere']),
    ([DIGITS, '--mode=evaluate'], ['no checkpoint', 'train first']),
    ([DIGITS, '--mode=plan'], ['--mode=plan needs --topology']),
    ([DIGITS, '--topology=cpu:8'], ['--topology is for --mode=plan']),
    ([DIGITS, '--mode=sample', '--labels=1,12'], ['--labels=1,12', 'choose from 0 to 9']),
    ([DIGITS, '--labels=1'], ['--labels', '--mode=sample']),
    ([DIGITS, '--config.evaluate.split=tset'], ['tset', "choose from ['all', 'heldout', 'train']"]),
    ([DIGITS, '--config.model.wdith=3'], ['config.model.wdith', 'Did you mean "width"']),
    ([DIGITS, 'stray'], ['stray']),
    ([DIGITS, '--mode=pairs', '--num_samples=9'], ['--mode=pairs needs --out']),
    ([DIGITS, '--mode=sample', '--out=x'], ['--out is for --mode=pairs']),
    ([DIGITS, '--mode=finish'], ['--mode=finish needs --inputs', '.npz file that holds it as']),
    ([DIGITS, '--neighbours'], ['--neighbours is for --mode=sample or evaluate']),
    (['--config=configs/reflow.py', '--config.data.dir=/nowhere'],
     ['config.data.dir', 'there are no pairs in /nowhere', '--mode=pairs']),
]


@pytest.mark.parametrize('flags,words', REFUSED, ids=lambda v: '-'.join(map(str, v))[:40])
def test_bad_input_is_refused_in_one_line(tmp_path, flags, words):
  done = eqflow(f'--workdir={tmp_path / "run"}', *flags)
  assert done.returncode == 2, f'exit code {done.returncode}: {done.stderr[-2000:]}'
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith('eqflow: '), f'not a refusal: {done.stderr[-2000:]}'
  for word in words:
    assert word in last, f'{word!r} is not in {last!r}'
  assert 'Traceback' not in done.stderr
  assert not (tmp_path / 'run').exists(), 'a refused run must leave nothing behind'


def test_the_folder_of_the_run_must_be_given():
  done = eqflow(DIGITS)
  assert done.returncode == 2 and '--workdir is not set' in done.stderr


def test_train_evaluate_and_sample_from_the_command_line(tmp_path):
  workdir = tmp_path / 'run'
  common = [DIGITS, f'--workdir={workdir}', f'--config.data.dir={tmp_path}', *TINY]
  done = eqflow(*common)
  assert done.returncode == 0, done.stderr[-2000:]
  said = done.stdout.strip().splitlines()
  assert str(workdir / 'samples.png') in said and said[-1].startswith('sum '), 'then the ledger'
  assert 'a Gaussian per class' in done.stdout and 'FID' not in done.stdout
  assert set(json.loads((workdir / 'evaluation.json').read_text())['rows']) > {'one Gaussian'}

  done = eqflow(*common, '--mode=sample', '--num_samples=5', '--labels=7,1', '--seed=9',
                '--neighbours', '--config.sample.threshold=1e-9')
  assert done.returncode == 0, done.stderr[-2000:]
  assert '5 of 5 did not converge' in done.stdout and 'of 1,797 training records' in done.stdout
  assert (workdir / 'neighbours.png').exists()
  assert (workdir / 'samples-seed9.png').exists()
  with np.load(workdir / 'samples-seed9.npz') as file:
    assert file['samples'].shape == (5, 8, 8, 1)
    np.testing.assert_array_equal(file['labels'], [7, 1, 7, 1, 7])

  drawn = workdir / 'samples-seed9.npz'
  done = eqflow(*common, '--mode=finish', f'--inputs={drawn}', '--noise=0.5', '--seed=2',
                '--labels=3+5', '--weights=1,1', f'--with={workdir}')
  assert done.returncode == 0, done.stderr[-2000:]
  with np.load(workdir / 'finished-seed2.npz') as file:
    assert file['samples'].shape == (5, 8, 8, 1) and file['weights'].tolist() == [[1, 1]] * 5
  done = eqflow(*common, '--mode=score', f'--inputs={drawn}')
  assert done.returncode == 0, done.stderr[-2000:]
  assert json.loads((workdir / 'scores-samples-seed9.json').read_text())['num_inputs'] == 5

  done = eqflow(*common, '--config.train.num_examples=64')
  assert done.returncode == 2 and 'config.train.num_examples: 32 there, 64 given' in done.stderr


@pytest.mark.long
def test_a_run_killed_at_any_moment_goes_on_and_ends_bit_for_bit_where_an_unbroken_one_does(tmp_path):
  flags = [DIGITS, f'--config.data.dir={tmp_path}', *TINY, '--config.train.num_examples=6400',
           '--config.train.checkpoint_examples=320', '--config.train.log_examples=160']
  assert eqflow(*flags, f'--workdir={tmp_path / "whole"}').returncode == 0
  broken, killed = tmp_path / 'broken', 0
  for seconds in (6, 7, 8, 9):
    process = subprocess.Popen(
        [sys.executable, '-m', 'eqflow.main', *flags, f'--workdir={broken}'], cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
      process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
      process.kill()
      killed += process.wait() < 0
  assert killed, 'no run was killed: give it more examples'
  assert eqflow(*flags, f'--workdir={broken}').returncode == 0
  samples = [np.load(tmp_path / name / 'samples.npz')['samples'] for name in ('whole', 'broken')]
  np.testing.assert_array_equal(*samples)
  lines = [[(row['step'], row['loss']) for row in map(json.loads, path.read_text().splitlines())]
           for path in (tmp_path / 'whole/metrics.jsonl', broken / 'metrics.jsonl')]
  assert lines[0] == lines[1]
