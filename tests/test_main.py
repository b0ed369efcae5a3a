"""The command line: a wrong one is rejected in one line with exit code 2, and leaves nothing behind."""

import json
import pathlib
import re
import shlex
import subprocess
import sys
from unittest import mock

from absl.testing import flagsaver
import numpy as np
import pytest

from eqflow import main
from eqflow.commands import options
from eqflow.config import reading, schema
from tests import ROOT, config_file
from tests.faults import commands

DIGITS = f'--config={ROOT}/configs/digits.py'
TINY = ['--config.model.width=16', '--config.model.depth=1', '--config.model.heads=2',
        '--config.train.batch=16', '--config.train.num_examples=32', '--config.sample.num_steps=2',
        '--config.sample.batch=16', '--config.evaluate.num_samples=16']


def eqflow(*flags):
  return subprocess.run([sys.executable, '-m', 'eqflow.main', *map(str, flags)], cwd=ROOT,
                        capture_output=True, text=True, timeout=300)


def program(*flags):
  """The program, in this process."""
  argv = ['eqflow.main', *map(str, flags)]
  # ml_collections reads config overrides from sys.argv.
  with flagsaver.flagsaver(), mock.patch.object(sys, 'argv', argv):
    main.main(main.parse(argv))


def line_of(stderr):
  """The one line of a rejection."""
  line = stderr.strip().splitlines()[-1]
  assert line.startswith('eqflow: ') and 'Traceback' not in stderr, stderr[-2000:]
  return line


# The flags, and the keys, values and allowed values that the line names.
REJECTED = [
    ([DIGITS, '--config.trian.batch=32'], ['config.trian.batch', 'train']),
    ([DIGITS, '--config.optimizer.rate=fast'], ["config.optimizer.rate='fast'", 'number']),
    ([f'{DIGITS}:qm'], ['qm', "['blind_flow', 'edm', 'edm2', 'eps'"]),
    (['--config=configs/nothing.py'], ['configs/nothing.py']),
    ([DIGITS, '--mode=tarin'], ['mode', 'tarin', 'train', 'evaluate', 'sample']),
    ([DIGITS, '--config.process.name=linaer'], ["config.process.name='linaer'", "'linear'"]),
    ([DIGITS, '--config.train.batch=0'], ['config.train.batch=0']),
    ([DIGITS, '--config.data.name=nothing', '--config.data.dir=/nowhere'],
     ['nothing', '/nowhere', 'python -m eqflow.data.prepare']),
    ([DIGITS, '--config.data.name=folder', '--config.data.dir=/nowhere'], ['/nowhere']),
    ([DIGITS, '--mode=plan'], ['--mode=plan', '--topology']),
    ([DIGITS, '--topology=cpu:8'], ['--topology=cpu:8', '--mode=plan', '--mode=train']),
    ([DIGITS, '--mode=sample', '--labels=1,12'], ['--labels=1,12', '0 to 9']),
    ([DIGITS, '--labels=1,2'], ['--labels=1,2', '--mode=sample or denoise', '--mode=train']),
    ([DIGITS, '--config.evaluate.split=tset'], ['tset', "['all', 'heldout', 'train']"]),
    ([DIGITS, '--config.model.wdith=3'], ['config.model.wdith', 'Did you mean "width"']),
    ([DIGITS, "--config.sample.solver={'name': 'ddim'}", '--config.sample.solver.churn=0.2'],
     ['config.sample.solver.churn', '''--config.sample.solver="{'name': 'ddim', 'churn': 0.2}"''']),
    ([DIGITS, '--config.sample.grid.rho=7.0'],
     ['config.sample.grid.rho', "'uniform'", "['end', 'start']", '--config.sample.grid="{']),
    ([DIGITS, 'stray'], ['stray']),
    ([DIGITS, '--mode=pairs', '--num_samples=9'], ['--mode=pairs', '--out']),
    ([DIGITS, '--mode=pairs', '--out=x'], ['--mode=pairs', '--num_samples']),
    ([DIGITS, '--mode=sample', '--out=x'], ['--out=x', '--mode=pairs']),
    ([DIGITS, '--mode=denoise'], ['--mode=denoise', '--inputs', '.npz']),
    ([DIGITS, '--neighbours'], ['--neighbours', '--mode=sample or evaluate']),
    ([DIGITS, '--process_id=1'], ['--process_id', '--distributed']),
    ([DIGITS, '--mode=sweep', '--std=0.4'], ['--std=0.4', '0.2887']),
    ([f'--config={ROOT}/configs/reflow.py', '--config.data.dir=/nowhere'],
     ['config.data', '/nowhere', '--mode=pairs']),
    ([DIGITS, '--workdir=gs://bucket/run'], ['--workdir=gs://bucket/run']),
    ([DIGITS, '--workdir='], ['--workdir']),
    ([DIGITS, '--workdir=/proc/x'], ['--workdir=/proc/x', 'give a folder']),
    ([DIGITS, '--mode=pairs', '--num_samples=4', '--out='], ['--out is empty', 'folder']),
    ([DIGITS, '--mode=denoise', '--inputs='], ['--inputs is empty', '.npy']),
    ([DIGITS, '--mode=sample', '--labels='], ['--labels is empty']),
    ([DIGITS, '--config.sample.solver=ddim'],
     ["config.sample.solver='ddim'", """--config.sample.solver="{'name': 'ddim'}\""""]),
    ([DIGITS, "--config.sample.solver={'name' 'ddim'}"],
     ["config.sample.solver=\"{'name' 'ddim'}\"", "use --config.sample.solver="]),
    ([f'--config={ROOT}/eqflow/mix.py'], ['--config', 'get_config', 'configs/digits.py']),
    ([DIGITS, '--config.sample.scale=(1.0,2.0)'], ['config.sample.scale=(1.0, 2.0)', '(8, 8, 1)']),
    ([DIGITS, '--config.sample.scale=fast'], ["config.sample.scale='fast'", 'number']),
    ([], ['--config']),
    ([DIGITS, '--config.data.flip=yes'], ["config.data.flip='yes'", 'True or False']),
    ([DIGITS, '--config.loss.weight=edm'], ["{'name': 'edm', 'sigma_data': 0.5}"]),
    ([DIGITS, '--config.train=5'], ['config.train=5', '--config.train.KEY=VALUE']),
    ([DIGITS, '--config.model.width.x=3'], ['config.model.width is a value']),
    ([DIGITS, '--mode=sample', '--labels=3,4,'], ['--labels=3,4, has an empty entry', '--labels=3,4']),
    ([DIGITS, '--mode=sample', '--num_samples=x'], ['--num_samples=x must be a whole number']),
    ([DIGITS, '--mode=sample', '--num_samples=1000000000000'], ['--num_samples=1000000000000', 'GB']),
    ([DIGITS, '--config.train.batch=2147483640'], ['config.train.batch=2147483640', 'GB']),
    ([DIGITS, '--config.model.width=131072'], ['config.model', 'GB of parameters']),
    ([DIGITS, '--config.sample.num_steps=1000000000'], ['config.sample.num_steps=1000000000']),
    ([DIGITS, '--config.data.shape=(100000,100000,1)'], ['config.data.shape', 'GB']),
    ([DIGITS, '--config.sample.solver.step_size=1e30'], ['config.sample.solver', 'not finite']),
    ([DIGITS, '--config.model.dtype=float16', '--config.train.max_skipped=3'],
     ["config.model.dtype='float16'", 'bfloat16']),
    ([DIGITS, '--config.ema.decays=(0.9999999,)'], ["['params', '0.9999999']"]),
    # The last value counts, of a tuple as of a number.
    ([DIGITS, '--config.ema.decays=(0.9,)', '--config.ema.decays=(0.99,)'], ["['params', '0.99']"]),
    ([DIGITS, "--config.ema={'decays': (0.9,)}"], ['config.ema.stds', 'default is ()']),
    ([DIGITS, '--config.model.width=abc'], ["config.model.width='abc'", 'whole number']),
    ([DIGITS, '--config.sample.grid.start=zero'], ["config.sample.grid.start='zero'", 'number']),
    ([DIGITS, '--config.data.shape=2.5'], ['config.data.shape=(2.5,)', 'tuple', 'whole number']),
    ([DIGITS, '--config.data.name='], ["name=''", 'moons', 'folder']),
]
# Keys that take any text.
FREE_OF_WORDS = ('data.name', 'data.split', 'data.dir', 'evaluate.split', 'sample.params',
                 'sample.guide.workdir', 'sample.guide.params', 'train.compile_cache')



@pytest.mark.parametrize('flags,words', REJECTED, ids=lambda v: '-'.join(map(str, v))[-40:])
def test_a_wrong_command_line_is_rejected_in_one_line(tmp_path, capsys, flags, words):
  with pytest.raises(SystemExit) as ended:
    program(f'--workdir={tmp_path / "run"}', *flags)
  line = line_of(capsys.readouterr().err)
  assert ended.value.code == 2
  for word in words:
    assert word in line, f'{word!r} is not in {line!r}'
  assert not (tmp_path / 'run').exists(), 'a rejected run leaves nothing behind'


# What a config file may do wrong, and what the line says.
BROKEN = {
    'def get_config():\n  return None.digits\n': ('line 2', "'digits'"),
    'def get_config():\n\n  raise RuntimeError("no GPU")\n': ('line 3', 'RuntimeError', 'no GPU'),
    'def get_config():\n  return dict(seed=1)\n': ('get_config() returns dict', 'defaults.config'),
    'def get_config(:\n': ('line 1', 'SyntaxError'),
    '\nimport not_there\n': ('line 2', 'not_there'),
    'x = 3\n': ('get_config', 'configs/digits.py'),
    'import sys\nsys.exit(0)\n': ('line 2', 'SystemExit'),
    'def get_config():\n  return get_config()\n': ('line 2', 'RecursionError'),
}


@pytest.mark.parametrize('text', BROKEN)
def test_a_broken_config_file_is_rejected_by_its_line(tmp_path, capsys, text):
  (tmp_path / 'broken.py').write_text(text)
  with pytest.raises(SystemExit) as ended:
    program(f'--config={tmp_path}/broken.py', f'--workdir={tmp_path}')
  line = line_of(capsys.readouterr().err)
  assert ended.value.code == 2 and all(word in line for word in ('broken.py', *BROKEN[text])), line


def test_the_config_of_a_run_is_a_config(tmp_path):
  config = config_file('toy').get_config()
  (tmp_path / 'config.json').write_text(config.to_json_best_effort())
  assert reading.read(f'{tmp_path}/config.json').to_dict() == config.to_dict()
  argv = ['eqflow.main', f'--config={tmp_path}/config.json', '--config.sample.scale=(1.5,)']
  with flagsaver.flagsaver(), mock.patch.object(sys, 'argv', argv):
    main.parse(argv)
    assert options.config().sample.scale == (1.5,)


@pytest.mark.parametrize('key', [key for key in schema.KEYS if key not in FREE_OF_WORDS])
def test_words_where_a_value_of_another_kind_is_wanted_are_ours(key, capsys):
  with pytest.raises(SystemExit):
    program(DIGITS, '--workdir=/nowhere', f'--config.{key}=(nothing')
  line = line_of(capsys.readouterr().err)
  assert f'config.{key}' in line and '<ast' not in line and 'literal' not in line


def test_mutated_command_lines_are_rejected_in_one_line(tmp_path):
  assert {said for said in map(commands.judged, commands.drawn(28, 3, tmp_path))} <= {
      'rejected', 'accepted'}


def test_a_flag_gives_a_guidance_scale_for_each_channel():
  argv = ['eqflow.main', DIGITS, '--config.sample.scale=(1.5,)']
  with flagsaver.flagsaver(), mock.patch.object(sys, 'argv', argv):
    main.parse(argv)
    assert options.config().sample.scale == (1.5,)


@pytest.mark.parametrize('flags,words', [
    ([DIGITS, '--config.train.batch=big'], ["config.train.batch='big'", 'whole number']),
    ([DIGITS, '--mode=evaluate'], ['no checkpoint', '--mode=train']),
    ([DIGITS, '--config.train.batch=-1', '--mode=sample'], ['config.train.batch=-1'])],
    ids=['parsing', 'evaluate', 'sample'])
def test_the_program_ends_with_exit_code_2(tmp_path, flags, words):
  done = eqflow(f'--workdir={tmp_path / "run"}', *flags)
  assert done.returncode == 2
  assert all(word in line_of(done.stderr) for word in words), done.stderr
  assert not (tmp_path / 'run').exists()


def test_every_mode_has_a_command_and_every_option_a_mode():
  assert set(main.COMMANDS) < set(main.MODES)
  assert len(set(main.MODES)) == len(main.MODES)
  for name, option in options.OPTIONS.items():
    assert {*option.needed, *option.optional} <= set(main.MODES), name
    assert not set(option.needed) & set(option.optional), name


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """(flags, workdir, what it printed) of a small run, trained and evaluated by the program."""
  folder = tmp_path_factory.mktemp('main')
  flags = [DIGITS, f'--workdir={folder / "run"}', f'--config.data.dir={folder.parent / "data"}', *TINY]
  done = eqflow(*flags)
  assert done.returncode == 0, done.stderr[-2000:]
  return flags, folder / 'run', done.stdout


def test_a_training_ends_with_its_table_its_picture_and_three_commands(trained):
  _, workdir, said = trained
  assert 'FID' not in said
  found = json.loads((workdir / 'evaluation.json').read_text())
  rows = found['rows']
  assert set(rows) == {'run, step 2', 'two halves of the data', 'bootstrap of the data',
                       'a Gaussian per class', 'one Gaussian'} and found['num_samples'] == 16
  assert all(np.isfinite(list(row.values())).all() for row in rows.values())
  with np.load(workdir / 'samples.npz') as file:
    assert file['samples'].shape == (16, 8, 8, 1) and abs(file['samples']).max() <= 1
  *_, table, picture, commands = said.strip().split('\n\n')
  assert all(row in table for row in rows) and picture == f'{workdir}/samples.png'
  assert commands.count('  python -m ') == 3


def commands_of(said):
  """The flags of every command of the program that is printed, as a shell reads them."""
  return [shlex.split(flags) for flags in
          re.findall('python -m eqflow.main (.*)', said.replace('\\\n', ' '))]


def test_the_command_that_a_training_ends_with_samples_from_it(trained, capsys):
  flags, workdir, said = trained
  program(*commands_of(said)[0], '--num_samples=3', '--seed=4')
  assert capsys.readouterr().out.endswith(f'{workdir}/samples-seed4.png\n{workdir}/samples-seed4.npz\n')
  with np.load(workdir / 'samples-seed4.npz') as file:
    assert file['labels'].tolist() == [0, 1, 0] and file['samples'].shape == (3, 8, 8, 1)


def test_the_commands_that_a_run_ends_with_have_its_config_and_overrides(capsys):
  solver = "--config.sample.solver={'churn': 0.5, 'name': 'ddim'}"
  argv = ['eqflow.main', '--config', 'configs/digits.py:flow', '--workdir', 'runs/a b', '--mode',
          'train', solver, '--config.sample.num_steps', '7',
          '--config.data.dir=/some/folder', '--neighbours']
  with flagsaver.flagsaver(), mock.patch.object(sys, 'argv', argv):
    main.parse(argv)
    found = main.next_commands(options.config(), options.workdir('train'))
  assert max(map(len, found.splitlines())) <= 100
  assert commands_of(found)[1] == [
      '--config=configs/digits.py:flow', f'--workdir={pathlib.Path("runs/a b").absolute()}', solver,
      '--config.sample.num_steps=7', '--config.data.dir=/some/folder', '--mode=evaluate',
      '--neighbours']


def test_a_trained_model_samples_denoises_and_detects_from_the_command_line(trained, capsys):
  flags, workdir, _ = trained
  program(*flags, '--mode=sample', '--num_samples=5', '--labels=7,1', '--seed=9', '--neighbours',
          '--config.sample.threshold=1e-9')
  said = capsys.readouterr().out
  assert re.search('5 of 5.*1e-09', said) and '1,797' in said
  assert (workdir / 'neighbours.png').exists() and (workdir / 'samples-seed9.png').exists()
  with np.load(workdir / 'samples-seed9.npz') as file:
    assert file['samples'].shape == (5, 8, 8, 1)
    np.testing.assert_array_equal(file['labels'], [7, 1, 7, 1, 7])

  drawn = workdir / 'samples-seed9.npz'
  program(*flags, '--mode=denoise', f'--inputs={drawn}', '--noise=0.5', '--seed=2', '--labels=3+5',
          '--weights=1,1', f'--others={workdir}')
  with np.load(workdir / 'denoised-seed2.npz') as file:
    assert file['samples'].shape == (5, 8, 8, 1) and file['weights'].tolist() == [[1, 1]] * 5
  program(*flags, '--mode=ood', f'--inputs={drawn}')
  assert json.loads((workdir / 'ood-samples-seed9.json').read_text())['num_inputs'] == 5


def test_a_folder_with_another_run_is_rejected_by_the_key_that_differs(trained, capsys):
  flags, *_ = trained
  with pytest.raises(SystemExit):
    program(*flags, '--config.train.num_examples=64')
  assert re.search(r'config\.train\.num_examples\D+32\D+64', line_of(capsys.readouterr().err))


@pytest.mark.long
def test_a_run_that_is_killed_ends_bit_for_bit_like_one_that_is_not(tmp_path):
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
  assert killed, 'no run was killed; train on more examples'
  assert eqflow(*flags, f'--workdir={broken}').returncode == 0
  samples = [np.load(tmp_path / name / 'samples.npz')['samples'] for name in ('whole', 'broken')]
  np.testing.assert_array_equal(*samples)
  lines = [[(row['step'], row['loss']) for row in map(json.loads, path.read_text().splitlines())]
           for path in (tmp_path / 'whole/metrics.jsonl', broken / 'metrics.jsonl')]
  assert lines[0] == lines[1]
