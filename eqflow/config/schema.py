"""What the keys of a config may hold, each alone: its kind, and its limits where it is a number.

Sections that name a row of a table have that row's numbers, which are checked where they are bound:
of those only the networks' stand here, whose modules take whatever they are given.
"""

from collections.abc import Callable, Mapping
import functools
import math
import numbers as kinds
from typing import Any

from ml_collections import ConfigDict

from eqflow.config.errors import ABSENT, ConfigError
from eqflow.config.sections import choose, finite
from eqflow.config.tables import MODELS
from eqflow.models import edm2, mlp

LARGEST = 2**31 - 1


def whole(value: Any, path: str, *, least: float | int = -math.inf,
          most: float | int = LARGEST) -> None:
  """Raises ValueError where value is no whole number in [least, most], naming the key."""
  finite(value, path, least=least, most=most)
  if not isinstance(value, kinds.Integral):
    raise ConfigError(path, value, 'must be a whole number')


def flag(value: Any, path: str) -> None:
  """Raises ValueError where value is not True or False, naming the key."""
  if not isinstance(value, bool):
    raise ConfigError(path, value, 'must be True or False')


def text(value: Any, path: str) -> None:
  """Raises ValueError where value is no string, naming the key."""
  if not isinstance(value, str):
    raise ConfigError(path, value, 'must be a string')


def several(value: Any, path: str, *, of: Callable, some: bool = False) -> None:
  """Raises ValueError where value is no tuple of what `of` takes; an empty one, too, with `some`."""
  if not isinstance(value, (tuple, list)) or (some and not len(value)):
    raise ConfigError(path, value, f'must be a tuple{" of one or more" * some}')
  for each in value:
    of(each, path)


def section(value: Any, path: str) -> None:
  """Raises ValueError where value is no section, naming the key."""
  if not isinstance(value, ConfigDict):
    raise ConfigError(path, value, 'must be a section', 'see configs/digits.py')


def _or_none(value, path, *, of):
  if value is not None:
    of(value, path)


def _scale(value, path):
  """A number, or a tuple of them: their count is compared with the data's channels."""
  if not isinstance(value, (tuple, list)):
    finite(value, path)
    return
  for i, number in enumerate(value):
    finite(number, f'{path}[{i}]')


def _multiple(value, path):
  if not finite(value, path, least=0) > 0:
    raise ConfigError(path, value, 'must be above 0')


_count, _share = functools.partial(whole, least=1), functools.partial(finite, least=0, most=1)
_from_zero, _below_one = functools.partial(finite, least=0), functools.partial(
    finite, least=0, most=1 - 1e-9)

# Keys that every config has, but for those of OPTIONAL.
KEYS = {
    '': dict(
        # Any 32 bits; the rest are sections.
        seed=functools.partial(whole, least=0, most=2**32 - 1), data=section, model=section,
        process=section, output=section, loss=section, energy=section, mesh=section, train=section,
        optimizer=section, ema=section, sample=section, evaluate=section),
    'data': dict(
        name=text, split=text, dir=text, shape=functools.partial(several, of=_count, some=True),
        num_classes=functools.partial(whole, least=0), flip=flag,
        workers=functools.partial(whole, least=0, most=1024)),
    'loss': dict(
        space=text, weight=section, density=section, stratified=flag, coupling=section,
        at_data=_below_one, dispersive=_from_zero,
        uncertainty=functools.partial(whole, least=0, most=2**20)),
    # -1: as many as are left.
    'mesh': dict.fromkeys(('data', 'fsdp', 'tensor'), functools.partial(whole, least=-1)),
    'train': dict(
        # Examples are counted in uint32, a batch beyond the last too.
        batch=_count, accumulate=_count, num_examples=functools.partial(whole, least=1, most=2**32 - 2),
        drop_label=_share, log_examples=_count, sample_examples=_count, checkpoint_examples=_count,
        keep_checkpoints=_count, max_skipped=functools.partial(whole, least=0),
        stuck_seconds=_from_zero),
    'optimizer': dict(
        rate=_from_zero, b1=_below_one, b2=_below_one, eps=_from_zero, weight_decay=_from_zero,
        clip=_from_zero, warmup_examples=_from_zero, schedule=section),
    'ema': dict(
        decays=functools.partial(several, of=functools.partial(finite, least=1e-9, most=1 - 1e-9)),
        stds=functools.partial(several, of=finite),
        snapshot_examples=functools.partial(whole, least=0), snapshot_dtype=text),
    'sample': dict(
        params=text, batch=_count, threshold=_from_zero, scale=_scale, rescale=_share,
        interval=section, guide=section, solver=section, num_steps=_count, grid=section),
    'sample.guide': dict(workdir=text, params=text),
    # Precision and recall look at third neighbours.
    'evaluate': dict(split=text, num_samples=functools.partial(whole, least=4)),
}
# A descent has no grid.
OPTIONAL = 'sample.grid',
# Numbers of the rows that a descent and its field are made of.
STEPS = dict(
    momentum=_below_one, temperature=_from_zero, b1=_below_one, b2=_below_one,
    half=_multiple, num_steps=_multiple)
DECAY = dict(
    # From there the field falls, to nothing at data.
    start=functools.partial(finite, least=0, most=1 - 1e-6), gain=_multiple, height=finite)
# What networks may be given.
MODEL = dict(
    patch=_count, width=_count, depth=_count, heads=_count, final_scale=_from_zero, dtype=text,
    param_dtype=text, remat=flag, remat_policy=text, learned_positions=flag, doubled=flag,
    mlp_ratio=_multiple,
    dropout=functools.partial(finite, least=0, most=1 - 1e-6), blocks=_count, head_width=_count,
    multipliers=functools.partial(several, of=_multiple, some=True),
    attention=functools.partial(several, of=_count),
    resample_filter=functools.partial(several, of=finite, some=True),
    clip=functools.partial(_or_none, of=_multiple),
    noise_multiplier=functools.partial(_or_none, of=_multiple),
    embedding_multiplier=functools.partial(_or_none, of=_multiple),
    res_balance=_share, attn_balance=_share, concat_balance=_share, label_balance=_share,
    scale_input=section, label_noise=section)


def check(config: ConfigDict) -> None:
  """Raises ValueError for a key or a value that no run can have, naming the key."""
  for path, keys in KEYS.items():
    found = config
    for name in path.split('.') if path else ():
      found = found.get(name)
    if found is not None:
      _check_section(found, path, keys)
  shape, train = tuple(config.data.shape), config.train
  _check_model(config.model, shape)
  whole(train.num_examples, 'train.num_examples', least=1, most=2**32 - 1 - train.batch)
  _check_channels(config.sample.scale, shape)
  decay = config.output.get('decay')
  _check_rows(decay, 'output.decay', DECAY)
  _check_rows(config.sample.get('solver'), 'sample.solver', STEPS)
  _check_rows(config.sample.solver.get('schedule'), 'sample.solver.schedule', STEPS)
  if isinstance(decay, ConfigDict) and decay.get('name') == 'piecewise' and decay.get('start') == 0:
    raise ConfigError('output.decay.start', 0, 'gives the first piece of the decay no length',
                      'use a number above 0, or --config.output.decay.name=linear')
  if config.data.flip and len(shape) != 3:
    raise ConfigError('data.flip', True, f'mirrors images, but config.data.shape={shape}',
                      'use --config.data.flip=False')
  if config.data.flip and config.data.name == 'pairs':
    raise ConfigError('data.flip', True, "cannot mirror the examples of config.data.name='pairs': "
                      "each is "
                      'paired with its noise', 'use --config.data.flip=False')


def _check_rows(found, path, checks):
  # Keys that are missing or unknown are told where the row is bound.
  for key in found if isinstance(found, ConfigDict) else ():
    if key in checks:
      checks[key](found[key], f'{path}.{key}')


def _check_section(found: ConfigDict, path: str, keys: Mapping[str, Callable]) -> None:
  dotted = lambda key: f'{path}.{key}' if path else key
  for key in found:
    if key not in keys:
      raise ConfigError(dotted(key), found[key],
                        f'is an unknown key: config{"." * bool(path)}{path} has {sorted(keys)}')
  for key, check_value in keys.items():
    if key in found:
      check_value(found[key], dotted(key))
    elif dotted(key) not in OPTIONAL:
      raise ConfigError(dotted(key), ABSENT, 'this key is missing', 'see configs/digits.py')


def _check_model(model, shape):
  for key in ('name', 'scale_input', 'label_noise'):
    if key not in model:
      raise ConfigError(f'model.{key}', ABSENT, 'this key is missing', 'see configs/digits.py')
  make = choose(MODELS, model.name, 'model.name')
  if len(shape) != (1 if make is mlp.MLP else 3):
    raise ConfigError('data.shape', shape, f'does not fit config.model.name={model.name!r}, which '
                      f'takes '
                      f'{"vectors of shape (d,)" if make is mlp.MLP else "images of shape (h, w, c)"}')
  for key, value in model.items():
    # Other keys are refused by what the network takes.
    if key in MODEL:
      MODEL[key](value, f'model.{key}')
  if getattr(make, 'func', make) is edm2.EDM2:
    _check_levels(model, shape)


def _check_levels(model, shape):
  multipliers = tuple(model.get('multipliers', edm2.EDM2.multipliers))
  if shape[0] % 2 ** (len(multipliers) - 1):
    raise ConfigError('model.multipliers', multipliers,
                      f'needs config.data.shape={shape} to halve {len(multipliers) - 1} times',
                      'use fewer')
  sizes = [shape[0] >> level for level in range(len(multipliers))]
  for size in model.get('attention', ()):
    if size not in sizes:
      raise ConfigError('model.attention', tuple(model.attention),
                        f'contains {size}, but the levels have the sizes {sizes}')


def _check_channels(scale, shape):
  if isinstance(scale, (tuple, list)) and (len(scale),) != shape[-1:]:
    raise ConfigError('sample.scale', tuple(scale),
                      f'has {len(scale)} numbers, but config.data.shape={shape}',
                      'use one number for each channel, or a single number')
