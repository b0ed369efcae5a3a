"""Invalid configs: every key of every config made wrong in every way.

Each mutation is a config of configs/ with one key, or an inconsistent pair of keys, changed; the error
must name it.
"""

from collections.abc import Iterator
import dataclasses
import functools
import math
import random
from typing import Any

from ml_collections import ConfigDict

from eqflow.config.tables import DESCENTS
from tests import config_file

CONFIGS = {'digits': None, 'toy': None, 'fashion_mnist': None, 'imagenet64': ('s', 's_autoguided'),
           'imagenet512': ('s', 'xs_classless', 'xxl_interval')}
MISSING = '<missing>'   # The key is deleted.
# Any text names a folder, and '' none.
FREE_TEXT = 'data.dir', 'sample.guide.workdir', 'sample.guide.params'
# The data set knows its splits.
SPLITS = 'data.split', 'evaluate.split', 'data.name'
# Keys that are optional.
OPTIONAL = {
    'sample.grid', 'model.dtype', 'model.remat', 'model.final_scale', 'model.dropout',
    'model.attention', 'model.head_width', 'model.blocks', 'model.multipliers', 'output.decay.gain',
    'optimizer.schedule.rampup_examples', 'sample.grid.start', 'sample.grid.end', 'sample.grid.rho',
    'loss.density.bins', 'loss.density.keep', 'sample.grid.sigma_min', 'sample.grid.sigma_max',
    'model.width', 'model.depth'}
# Numbers of the right type but outside the key's limits.
OUTSIDE = {
    'seed': (-1, 2**32), 'data.num_classes': (-1, 7), 'data.workers': (-1, 10**6),
    'data.shape': ((0, 8, 1), (8, -8, 1), (8.0, 8, 1), (), (3,), (8, 8)),
    'model.patch': (0, -2, 5, 2**31), 'model.width': (0, -64, 2**31), 'model.depth': (0, -1),
    'model.heads': (0, -1, 5, 7), 'model.final_scale': (-0.1,), 'model.blocks': (0, -1),
    'model.head_width': (0, -32, 2**31),
    'model.multipliers': ((), (0, 1), (1, -2), ('1', 2), (1, None)),
    'model.attention': ((5,), (16,), (4, 3), (0,), (4.0, 2.5)), 'model.dropout': (-0.1, 1.0, 2.0),
    'model.scale_input.sigma_data': (0.0, -0.5), 'output.sigma_data': (0.0, -0.5),
    'output.decay.start': (-0.1, 1.0, 1.5), 'loss.at_data': (-0.1, 1.0),
    'loss.dispersive': (-1.0,), 'loss.uncertainty': (-1, 2**21),
    'loss.space': ('U', 'equilibrium', 'edm'),
    'loss.density.std': (0.0, -1.0), 'loss.density.bins': (0, -3, 1),
    'loss.density.keep': (-0.5, 1.0, 1.5),
    'loss.density.low': (20.0,), 'loss.density.high': (-20.0,),
    'train.batch': (0, -64, 2**31), 'train.accumulate': (0, -1, 2**31, 7),
    'train.num_examples': (0, -1, 2**32), 'train.drop_label': (-0.1, 1.1),
    'train.log_examples': (0, -1, 2**31), 'train.sample_examples': (0, -1, 2**31),
    'train.checkpoint_examples': (0, -1, 2**31), 'train.keep_checkpoints': (0, -1),
    'train.max_skipped': (-1, 2**31), 'optimizer.rate': (-1e-3,), 'optimizer.b1': (-0.1, 1.0, 1.5),
    'optimizer.b2': (-0.1, 1.0, 2.0), 'optimizer.eps': (-1e-8,), 'optimizer.weight_decay': (-0.1,),
    'optimizer.clip': (-1.0,), 'optimizer.warmup_examples': (-1,),
    'optimizer.schedule.decay_examples': (0, -1), 'optimizer.schedule.rampup_examples': (-1,),
    'ema.decays': ((0.0,), (1.0,), (1.5,), (-0.9,), (0.999, 0.999), ('0.999',)),
    'ema.stds': ((0.0,), (0.5,), (-0.05,), (0.1, 0.1), ('0.1',), (float('nan'),)),
    'ema.snapshot_examples': (-1, 2**33), 'sample.batch': (0, -1, 2**31),
    'sample.threshold': (-1.0,), 'sample.scale': ((1.0, 2.0, 3.0, 4.0, 5.0), ()),
    'sample.rescale': (-0.1, 1.1), 'sample.num_steps': (0, -1, 2**31),
    'sample.interval.low': (10.0,), 'sample.interval.high': (0.001,),
    'output.decay.gain': (0.0, -4.0),
    'sample.solver.step_size': (0.0, -0.003), 'sample.grid.rho': (0.0, -7.0),
    'sample.grid.sigma_min': (0.0, -1.0, 100.0), 'sample.grid.sigma_max': (0.0, -80.0, 0.001),
    'sample.grid.start': (0.0,), 'sample.grid.end': (0.9, 1.0), 'evaluate.num_samples': (0, -1, 3),
}


@dataclasses.dataclass(frozen=True)
class Mutation:
  """One wrong config: `changes` {dotted key: value, or MISSING}; the error names one of `keys`."""
  name: str
  variant: str
  changes: tuple
  keys: tuple

  def config(self, data_dir: str) -> ConfigDict:
    """The mutated config, locked."""
    config = _file(self.name).get_config(self.variant)
    if config.data.name in ('digits', 'fashion_mnist'):
      config.data.dir = data_dir
    with config.unlocked(), config.ignore_type():
      for path, value in self.changes:
        _change(config, path, value)
    return config.lock()

  def __str__(self):
    told = ', '.join(f'{path}={"missing" if value is MISSING else repr(value)}'
                     for path, value in self.changes)
    return f'{self.name}:{self.variant} {told}'


_file = functools.cache(config_file)


def _change(config, path, value):
  *parents, key = path.split('.')
  for parent in parents:
    config = config[parent]
  with config.unlocked(), config.ignore_type():
    if value is MISSING:
      del config[key]
    else:
      if key in config:
        del config[key]
      config[key] = ConfigDict(value) if isinstance(value, dict) else value


def every() -> list[Mutation]:
  """All mutations, in the order of configs and keys."""
  found = [mutation for name, variants in CONFIGS.items()
           for variant in variants or _file(name).VARIANTS
           for mutation in _of_config(name, variant)]
  return found + [Mutation(name, variant, tuple(changes.items()), keys)
                  for name, variant, changes, keys in PAIRS]


def drawn(count: int, seed: int) -> list[Mutation]:
  """`count` mutations, the keys in turn: none comes twice before all have come once.

  The mutation of a key, and its config, depend on `seed`.
  """
  chance, of_key = random.Random(seed), {}
  for mutation in every():
    of_key.setdefault((len(mutation.changes), mutation.changes[0][0]), []).append(mutation)
  for mutations in of_key.values():
    chance.shuffle(mutations)
  order, found = list(of_key.values()), []
  chance.shuffle(order)
  while len(found) < count and any(order):
    found += [mutations.pop() for mutations in order if mutations]
  return found[:count]


def _of_config(name, variant) -> Iterator[Mutation]:
  config = _file(name).get_config(variant)
  for path, value in leaves(config):
    # A descent uses no grid, so every grid is allowed.
    outside = () if path.startswith('sample.grid.') and config.sample.solver.name in DESCENTS else (
        OUTSIDE.get(path, ()))
    # As a dict, so that a mutation's repr is Python.
    plain = value.to_dict() if isinstance(value, ConfigDict) else value
    for wrong in (*_wrong(path, value), *outside):
      yield Mutation(name, variant, ((path, wrong),), (path,))
    if path not in OPTIONAL and '.angles.' not in path:
      yield Mutation(name, variant, ((path, MISSING),), (path,))
    # Misspelt, and in the wrong section.
    *_, key = path.split('.')
    typo = path.removesuffix(key) + key[0] + key[2:] + key[1] if len(key) > 2 else path + '_'
    yield Mutation(name, variant, ((typo, plain),), (typo,))
    other = 'train' if not path.startswith('train') else 'evaluate'
    if key not in config[other]:
      yield Mutation(name, variant, ((f'{other}.{key}', plain),), (f'{other}.{key}',))


def leaves(config: ConfigDict, prefix: str = '') -> Iterator[tuple[str, Any]]:
  """(dotted key, value) of every value and of every section within."""
  for key, value in config.items():
    yield f'{prefix}{key}', value
    if isinstance(value, ConfigDict):
      yield from leaves(value, f'{prefix}{key}.')


def _wrong(path, value):
  """Values that are invalid in place of `value`."""
  if isinstance(value, ConfigDict):
    yield from (None, 5, 'linear', (), True)
    if 'name' in value and path not in ('data',):
      yield from (dict(name='nothing'), dict(name=3), dict())
  elif isinstance(value, bool):
    yield from ('False', 'true', 0, 1, None, 0.0, (True,), float('nan'))
  elif isinstance(value, str):
    yield from (None, 3, 1.5, (value,), True)
    if path not in FREE_TEXT and path not in SPLITS and path != 'loss.space':
      yield from (value + 'x', '', value.upper() if value.upper() != value else value + ' ')
  elif isinstance(value, (int, float)):
    yield from (str(value), None, (value, value, value, value, value), float('nan'), True, '')
    if not path.startswith('sample.interval.'):   # Half an interval is open to infinity.
      yield from (math.inf, -math.inf)
    if isinstance(value, int) and not path.endswith('examples'):
      yield value + 0.5
  else:
    yield from (None, 'abc', 3.5 if path != 'data.shape' else 8, True)


# Pairs of keys that are valid alone and inconsistent together.
PAIRS = [
    ('digits', 'eqm', {'model.c_noise': dict(name='time')}, ('model.c_noise',)),
    ('digits', 'eqm', {'model.c_noise': dict(name='logsnr')}, ('model.c_noise',)),
    ('digits', 'eqm', {'output': dict(name='score')}, ('output.name',)),
    ('digits', 'eqm', {'output': dict(name='eps')}, ('output',)),
    ('digits', 'eqm', {'output': dict(name='equilibrium')}, ('output',)),
    ('digits', 'eps', {'sample.grid': dict(name='uniform', start=1.0, end=0.0)}, ('sample.grid',)),
    ('digits', 'eps', {'process': dict(name='discrete', angles=dict(name='linear_zero_snr')),
                       'sample.grid': dict(name='trailing')}, ('sample.grid', 'loss')),
    ('digits', 'flow', {'model.c_noise': dict(name='logsnr')}, ('sample.grid', 'loss')),
    ('digits', 'flow', {'sample.threshold': 0.5}, ('sample.threshold',)),
    ('digits', 'flow', {'sample.scale': 2.0}, ('sample.scale',)),
    ('digits', 'eqm', {'sample.scale': 2.0}, ('sample.scale',)),
    ('toy', 'flow', {'sample.scale': 2.0}, ('sample.scale',)),
    ('toy', 'eqm', {'sample.scale': (2.0, 1.0)}, ('sample.scale',)),
    ('imagenet512', 'xs_classless', {'sample.scale': 1.4}, ('sample.scale',)),
    ('imagenet64', 's', {'sample.scale': 1.4}, ('sample.scale',)),
    ('imagenet64', 's_autoguided', {'sample.scale': 1.0}, ('sample.guide.workdir',)),
    ('digits', 'eqm', {'sample.interval': dict(name='time', low=0.1, high=0.5)}, ('sample.interval',)),
    ('digits', 'flow', {'sample.interval': dict(name='time', low=0.5, high=0.1)}, ('sample.interval',)),
    ('digits', 'flow', {'sample.interval': dict(name='time', low=0.5)}, ('sample.interval',)),
    ('digits', 'flow', {'sample.guide': dict(workdir='/nowhere', params='0.999'),
                        'sample.scale': 2.0}, ('sample.guide.workdir',)),
    ('toy', 'flow', {'data.flip': True}, ('data.flip',)),
    ('toy', 'flow', {'data.split': 'al'}, ('data',)),
    ('toy', 'flow', {'data.shape': (3,)}, ('data.shape',)),
    ('toy', 'flow', {'data.shape': (2, 2)}, ('data.shape', 'model')),
    ('toy', 'flow', {'data.num_classes': 3}, ('data.num_classes',)),
    ('toy', 'flow', {'data.split': 'test'}, ('data',)),
    ('toy', 'flow', {'evaluate.split': 'test'}, ('data', 'evaluate.split')),
    ('toy', 'flow', {'data.name': 'mons'}, ('data',)),
    ('digits', 'eqm', {'data.split': 'test'}, ('data',)),
    ('digits', 'eqm', {'data.shape': (8, 8, 3)}, ('data.shape',)),
    ('digits', 'eqm', {'data.num_classes': 5}, ('data.num_classes',)),
    ('digits', 'eqm', {'train.batch': 64, 'train.accumulate': 3}, ('train.batch', 'train.accumulate')),
    ('digits', 'eqm', {'train.batch': 9, 'train.accumulate': 2}, ('train.batch', 'train.accumulate')),
    ('digits', 'eqm', {'model.width': 66, 'model.heads': 3}, ('model.width', 'model')),
    ('digits', 'eqm', {'model.width': 64, 'model.heads': 6}, ('model.width', 'model.heads')),
    ('digits', 'eqm', {'model.patch': 3}, ('model.patch',)),
    ('fashion_mnist', 'eqm', {'model.patch': 8}, ('model.patch',)),
    ('digits', 'eqm', {'model.name': 'mlp'}, ('model.name', 'model.patch')),
    ('digits', 'eqm', {'model.name': 'edm2'}, ('model.patch', 'model.depth', 'model.heads')),
    ('toy', 'flow', {'model.name': 'dit'}, ('model',)),
    ('toy', 'flow', {'model.heads': 4}, ('model.heads',)),
    ('digits', 'eqm', {'model.num_classes': 10}, ('model.num_classes',)),
    ('digits', 'edm2', {'model.head_width': 64}, ('model.head_width',)),
    ('digits', 'edm2', {'model.multipliers': (1, 2, 2, 2, 2, 2)}, ('model.multipliers', 'data.shape')),
    ('digits', 'edm2', {'model.attention': (16,)}, ('model.attention',)),
    ('digits', 'edm2', {'model.clip': 0}, ('model.clip',)),
    ('digits', 'edm2', {'model.clip': -1.0}, ('model.clip',)),
    ('digits', 'edm2', {'model.res_balance': 1.5}, ('model.res_balance',)),
    ('digits', 'edm2', {'model.concat_balance': -0.5}, ('model.concat_balance',)),
    ('digits', 'edm2', {'model.resample_filter': (1, 2, 1)}, ('model.resample_filter',)),
    ('digits', 'edm2', {'model.resample_filter': (1, -1)}, ('model.resample_filter',)),
    ('digits', 'edm2', {'model.noise_multiplier': 0}, ('model.noise_multiplier',)),
    ('digits', 'edm2', {'model.embedding_multiplier': -1}, ('model.embedding_multiplier',)),
    ('digits', 'edm2', {'energy': dict(name='dot')}, ('model.dropout',)),
    ('digits', 'edm2', {'loss.dispersive': 0.5}, ('model.dropout',)),
    ('digits', 'eqm', {'model.mlp_ratio': 0.0}, ('model.mlp_ratio',)),
    ('digits', 'eqm', {'model.mlp_ratio': 1e-9}, ('model.mlp_ratio',)),
    ('digits', 'eqm', {'model.learned_positions': 'yes'}, ('model.learned_positions',)),
    ('digits', 'eqm', {'model.doubled': 1}, ('model.doubled',)),
    ('digits', 'eqm', {'model.param_dtype': 'float64'}, ('model.param_dtype',)),
    ('digits', 'eqm', {'model.dtype': 'float16'}, ('model.dtype',)),
    ('digits', 'eqm', {'energy': dict(name='squared_norm')}, ('model.final_scale',)),
    ('digits', 'eqm', {'energy': dict(name='dot'), 'loss.dispersive': 0.5}, ('loss.dispersive',)),
    ('digits', 'eqm', {'loss.coupling': dict(name='pairs')}, ('loss.coupling.name',)),
    ('digits', 'eqm', {'loss.coupling': dict(name='sinkhorn', regularization=0.0)}, ('loss.coupling',)),
    ('digits', 'eqm', {'loss.coupling': dict(name='sinkhorn')}, ('loss.coupling',)),
    ('digits', 'eqm', {'loss.density': dict(name='mode', scale=3.0)}, ('loss.density',)),
    ('digits', 'eqm', {'loss.density': dict(name='uniform_on', low=0.5, high=0.1)}, ('loss.density',)),
    ('digits', 'flow', {'loss.density': dict(name='uniform_on', low=-0.5, high=1.5)}, ('loss',)),
    ('digits', 'flow', {'loss.density': dict(name='lognormal', mean=0.0, std=1.0)}, ('loss',)),
    ('digits', 'flow', {'loss.weight': dict(name='on_logsnr', w=dict(name='elbo'))}, ('loss.space',)),
    ('digits', 'flow', {'loss.space': 'score'}, ('loss',)),
    ('toy', 'adaptive', {'loss.at_data': 0.1}, ('loss.at_data',)),
    ('toy', 'adaptive', {'loss.weight': dict(name='ones')}, ('loss.weight.name',)),
    ('toy', 'adaptive', {'loss.space': ''}, ('loss.space',)),
    ('digits', 'flow', {'process': dict(name='sub_vp', beta_min=-9.0, beta_max=1.0)}, ('process',)),
    ('digits', 'flow', {'process': dict(name='discrete')}, ('process',)),
    ('digits', 'flow', {'process': dict(name='shifted', process='linear', shift=2.0)},
     ('process.process',)),
    ('digits', 'flow', {'process': dict(name='shifted', process=dict(name='linear'), shift=-1.0)},
     ('process',)),
    ('digits', 'flow', {'process': dict(name='edm')}, ('sample.grid', 'loss')),
    ('digits', 'edm', {'process': dict(name='linear')}, ('sample.grid', 'output', 'loss')),
    ('digits', 'edm', {'sample.grid': dict(name='karras', sigma_min=90.0)}, ('sample.grid',)),
    ('digits', 'edm', {'sample.grid': dict(name='logsnr', start=-8.0, end=8.0)}, ('sample.grid',)),
    ('digits', 'flow', {'sample.grid': dict(name='leading', offset=-1)}, ('sample.grid',)),
    ('digits', 'flow', {'sample.grid': dict(name='trailing', table_size=10)}, ('sample.grid',)),
    ('digits', 'flow', {'sample.grid': dict(name='uniform', start=0.0, end=1.0)}, ('sample.grid',)),
    ('digits', 'flow', {'sample.grid': MISSING}, ('sample.grid',)),
    ('digits', 'flow', {'sample.solver': dict(name='gradient_descent', step_size=0.003)},
     ('sample.solver.name',)),
    ('digits', 'flow', {'sample.solver': dict(name='ddim', churn=2.0)}, ('sample.solver',)),
    ('digits', 'flow', {'sample.solver': dict(name='ddim', churn=0.5, eta=0.5)}, ('sample.solver',)),
    ('digits', 'flow', {'sample.solver': dict(name='unipc', order=4)}, ('sample.solver',)),
    ('digits', 'flow', {'sample.solver': dict(name='unipc', order=True)}, ('sample.solver.order',)),
    ('digits', 'eqm', {'sample.solver': dict(name='nesterov', step_size=0.003, momentum=-1.0)},
     ('sample.solver.momentum',)),
    ('digits', 'eqm', {'sample.solver': dict(name='adam', step_size=0.05, b1=1.5)},
     ('sample.solver.b1',)),
    ('digits', 'eqm', {'sample.solver': dict(name='gradient_descent', step_size=0.003, schedule=dict(
        name='harmonic', half=0))}, ('sample.solver.schedule.half',)),
    ('digits', 'eqm', {'output': dict(name='equilibrium', decay=dict(
        name='piecewise', start=0.0, height=1.4))}, ('output.decay.start',)),
    ('digits', 'flow', {'sample.solver': dict(name='adaptive', rtol=-1.0)}, ('sample.solver',)),
    ('digits', 'eqm', {'sample.solver': dict(name='langevin', step_size=0.1, temperature=-1.0)},
     ('sample.solver',)),
    ('digits', 'eqm', {'sample.params': '0.99'}, ('sample.params',)),
    ('digits', 'edm2', {'sample.params': '0.12'}, ('sample.params',)),
    ('digits', 'eqm', {'ema.snapshot_examples': 6400}, ('ema.snapshot_examples',)),
    ('digits', 'edm2', {'ema.snapshot_dtype': 'float64'}, ('ema.snapshot_dtype',)),
    ('digits', 'edm2', {'ema.stds': (0.05,)}, ('sample.params',)),
    ('digits', 'eqm', {'ema.decays': ()}, ('sample.params',)),
    ('digits', 'edm2', {'optimizer.schedule': dict(name='inverse_square_root')},
     ('optimizer.schedule',)),
    ('digits', 'eqm', {'train.num_examples': 2**32 - 10}, ('train.num_examples',)),
]
