"""The networks to train: name -> a variant of configs/<data>.py and its changes.

Every row is trained once for each seed, the most important rows first.
"""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from configs import digits, fashion_mnist
from eqflow.runs import restore
from eqflow.runs.run import run_of
from experiments import ROOT

SEEDS = (0, 1, 2)
DATA = {'digits': digits, 'fashion_mnist': fashion_mnist}
RUNS = ROOT / 'runs'


def _decay(name, **numbers):
  return {'output': dict(name='equilibrium', decay=dict(name=name, **numbers))}


def _energy(name):
  # The gradient of |f|^2 vanishes for a network that is zero, so all energies start from scale .02.
  return {'energy': dict(name=name), 'model.final_scale': 0.02}


# A field that is conditioned on time is integrated over time, as a flow is.
_FLOW = dict(solver=dict(name='ddim'), num_steps=50, grid=dict(name='uniform', start=1.0, end=0.0))

_HELDOUT = {'data.split': 'train', 'evaluate.split': 'train'}

ROWS = {
    'eqm':        ('eqm', {}),
    'flow':       ('flow', {}),
    'blind_flow': ('blind_flow', {}),
    'heldout':    ('eqm', _HELDOUT),
    'heldout_twice': ('eqm', _HELDOUT | {'train.num_examples': 384_000}),
    'heldout_gain_1': ('eqm', _HELDOUT | _decay('truncated', start=0.8, gain=1.0)),
    'eqm_time':   ('eqm', {'model.c_noise': dict(name='time'), 'sample': _FLOW}),
    'linear':     ('eqm', _decay('linear', gain=4.0)),
    'dot':        ('eqm', _energy('dot')),
    'constant':   ('eqm', _decay('constant', gain=4.0)),
    'start_.5':   ('eqm', _decay('truncated', start=0.5, gain=4.0)),
    'start_.9':   ('eqm', _decay('truncated', start=0.9, gain=4.0)),
    'height_.8':  ('eqm', _decay('piecewise', start=0.8, height=0.8, gain=4.0)),
    'height_1.4': ('eqm', _decay('piecewise', start=0.8, height=1.4, gain=4.0)),
    'gain_1':     ('eqm', _decay('truncated', start=0.8, gain=1.0)),
    'gain_2':     ('eqm', _decay('truncated', start=0.8, gain=2.0)),
    'gain_8':     ('eqm', _decay('truncated', start=0.8, gain=8.0)),
    'squared_norm': ('eqm', _energy('squared_norm')),
    'negative':   ('eqm', _energy('negative_squared_norm')),
}
# Training examples; on the digits half of those in configs/digits.py.
EXAMPLES = {'digits': 192_000, 'fashion_mnist': 128_000}
# OOD detection is measured on the digits only.
ROWS_OF = {'digits': list(ROWS),
           'fashion_mnist': [row for row in ROWS if not row.startswith('heldout')]}


def config_of(data: str, row: str, seed: int) -> ConfigDict:
  """The locked config of one training; raises KeyError for an unknown row."""
  variant, changes = ROWS[row]
  config = DATA[data].get_config(variant)
  config.seed = seed
  config.train.num_examples = EXAMPLES[data]
  # No previews, and only the last checkpoint.
  config.train.sample_examples = 10 * config.train.num_examples
  config.train.checkpoint_examples = config.train.num_examples // 2
  config.train.keep_checkpoints = 1
  for path, value in changes.items():
    section, _, key = path.rpartition('.')
    owner = config[section] if section else config
    owner[key] = ConfigDict(owner[key].to_dict() | value) if path == 'sample' else (
        ConfigDict(value) if isinstance(value, dict) else value)
  return config.lock()


def folder(data: str, row: str, seed: int, runs: pathlib.Path = RUNS) -> pathlib.Path:
  """The workdir of that training."""
  return runs / 'equilibrium_matching' / data / f'{row}_{seed}'


def steps_of(config: ConfigDict) -> int:
  """The number of updates of the config."""
  return -(-config.train.num_examples // config.train.batch)


def trained(data: str, row: str, seed: int, runs: pathlib.Path = RUNS) -> bool:
  """Whether the last checkpoint of that training exists."""
  steps = steps_of(config_of(data, row, seed))
  return (folder(data, row, seed, runs) / f'checkpoints/{steps}').is_dir()


def load(data: str, row: str, seed: int, runs: pathlib.Path = RUNS) -> tuple[ConfigDict, Any, Any]:
  """(config, recipe, EMA params) of a finished training; raises FileNotFoundError without one."""
  config = config_of(data, row, seed)
  if not trained(data, row, seed, runs):
    raise FileNotFoundError(f'{folder(data, row, seed, runs)} is not trained; run '
                            f'python -m experiments.equilibrium_matching.train --data={data}')
  run = run_of(config, folder(data, row, seed, runs))
  return config, run.recipe, restore.restore(run)[1].params
