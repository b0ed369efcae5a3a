"""The flags of the command line, one row each, and the modes that use them.

A command receives the flags that were given, by name; defaults are in its signature.
"""

from collections.abc import Callable, Sequence
import pathlib
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from eqflow import files
from eqflow.commands.widths import stds_of
from eqflow.config import reading


class Option(NamedTuple):
  """A flag, the modes that need it, and the modes that may use it."""
  define: Callable
  help: str
  needed: tuple[str, ...] = ()
  optional: tuple[str, ...] = ()
  convert: Callable = lambda value: value   # raises ValueError for what is not a value of the flag
  limits: dict[str, int] = {}


_EMA, _PROCESSES = ('reconstruct', 'sweep'), ('train', 'evaluate')

OPTIONS = {
    'num_samples': Option(
        flags.DEFINE_integer, 'How many samples; 100 by default.', needed=('pairs',),
        optional=('sample',), limits=dict(lower_bound=1)),
    'labels': Option(
        flags.DEFINE_list, 'Classes, repeated in turn; 3+5 composes two. Drawn by default.',
        optional=('sample', 'denoise')),
    'weights': Option(
        flags.DEFINE_list, 'Weights of the composed fields, in order; equal with sum 1 by default.',
        optional=('sample', 'denoise')),
    'others': Option(
        flags.DEFINE_list, 'Run folders of other models; their fields are added.',
        optional=('sample', 'denoise')),
    'seed': Option(
        flags.DEFINE_integer, 'Sample i is a function of the seed and i; 0 by default.',
        optional=('sample', 'pairs', 'denoise'), limits=dict(lower_bound=0, upper_bound=2**32 - 1)),
    'neighbours': Option(
        flags.DEFINE_bool, 'Compare samples with their nearest training examples.',
        optional=('sample', 'evaluate')),
    'inputs': Option(
        flags.DEFINE_string, "A .npy file [n, *config.data.shape], or a .npz file with it as 'x'.",
        needed=('denoise', 'ood'), convert=files.resolved),
    'noise': Option(
        flags.DEFINE_float, 'The time t: its noise is mixed into the inputs first.',
        optional=('denoise',)),
    'out': Option(
        flags.DEFINE_string, 'The folder that the pairs are written to.', needed=('pairs',),
        convert=files.resolved),
    'std': Option(
        flags.DEFINE_list, 'Relative widths of EMAs, such as 0.03,0.05,...,0.25.', needed=_EMA,
        convert=stds_of),
    'examples': Option(
        flags.DEFINE_integer, 'The training time of the EMAs; the last snapshot by default.',
        optional=_EMA, limits=dict(lower_bound=1)),
    'skip_damaged': Option(
        flags.DEFINE_bool, 'Continue without damaged or missing snapshots.', optional=_EMA),
    'topology': Option(
        flags.DEFINE_string, 'v5e:4x4, h100:1x8x8 (partitions, hosts, GPUs per host) or cpu:8.',
        needed=('plan',)),
    'levers': Option(
        flags.DEFINE_bool, 'If the step does not fit, compile what may make it fit; true by default.',
        optional=('plan',)),
    'distributed': Option(
        flags.DEFINE_bool, 'One of several processes, found by JAX or by the next three flags.',
        optional=_PROCESSES),
    'coordinator': Option(flags.DEFINE_string, 'host:port of process 0.', optional=_PROCESSES),
    'num_processes': Option(
        flags.DEFINE_integer, 'How many processes.', optional=_PROCESSES, limits=dict(lower_bound=1)),
    'process_id': Option(
        flags.DEFINE_integer, 'The number of this process, from 0.', optional=_PROCESSES,
        limits=dict(lower_bound=0)),
}
# These make one of several processes; the other flags are arguments of the command.
CLUSTER = ('distributed', 'coordinator', 'num_processes', 'process_id')


class _ConfigParser(flags.ArgumentParser):
  """Reads the file of --config."""

  def parse(self, path: str) -> ConfigDict:
    return reading.read(path)

  def flag_type(self) -> str:
    return 'config'


def define(modes: Sequence[str]) -> None:
  """Defines all flags, and --mode as one of `modes`. An absent flag has the value None."""
  config_flags.DEFINE_config_file('config', None, 'A file of configs/, such as configs/digits.py or '
                                  'configs/digits.py:edm, or the config.json of a run.')
  flags.FLAGS['config'].parser = _ConfigParser()
  flags.DEFINE_string('workdir', None, 'The folder of the run.')
  flags.DEFINE_enum('mode', 'train', modes, 'What to do; train evaluates at its end.')
  for name, option in OPTIONS.items():
    uses = ', '.join([*option.needed, *option.optional])
    option.define(name, None, f'{option.help} (--mode={uses})', **option.limits)


def last_of_each(argv: Sequence[str]) -> list[str]:
  """The command line without the values of a config key that a later one replaces.

  ml_collections would join the values of a tuple.
  """
  name = lambda arg: arg.lstrip('-').partition('=')[0]
  last = {name(arg): i for i, arg in enumerate(argv)}
  return [arg for i, arg in enumerate(argv)
          if last[name(arg)] == i or not (name(arg).startswith('config.') and '=' in arg)]


def given(mode: str) -> dict[str, Any]:
  """{name: value} of the flags that were given.

  Raises ValueError for a flag that is empty or that the mode does not use, and for a missing flag that
  it needs.
  """
  values = {name: flags.FLAGS[name].value for name in OPTIONS if flags.FLAGS[name].value is not None}
  for name, value in values.items():
    if value in ('', []):
      raise ValueError(f'--{name} is empty; give a value, or remove it: {OPTIONS[name].help}')
    if isinstance(value, list) and not all(value):
      whole = ','.join(filter(None, value)) or '...'
      raise ValueError(f'--{name}={_text(value)} has an empty entry; use --{name}={whole}')
    modes = OPTIONS[name].needed + OPTIONS[name].optional
    if mode not in modes:
      raise ValueError(f'--{name}={_text(value)} is for --mode={" or ".join(modes)}, not for '
                       f'--mode={mode}; remove it')
  for name, option in OPTIONS.items():
    if mode in option.needed and name not in values:
      raise ValueError(f'--mode={mode} needs --{name}: {option.help}')
  alone = [name for name in CLUSTER[1:] if name in values and not values.get('distributed')]
  if alone:
    raise ValueError(f'--{alone[0]} is for one of several processes; add --distributed')
  return {name: OPTIONS[name].convert(value) for name, value in values.items()}


def _text(value):
  return ','.join(value) if isinstance(value, list) else value


def config() -> ConfigDict:
  """The config of --config. Raises ValueError if none was given."""
  if flags.FLAGS.config is None:
    raise ValueError('--config is not set; give a file, such as --config=configs/digits.py')
  return flags.FLAGS.config


def workdir(mode: str) -> pathlib.Path | None:
  """The folder of --workdir, which every mode but plan needs. Raises ValueError."""
  found = flags.FLAGS.workdir
  if not found and mode != 'plan':
    raise ValueError('--workdir is not set; give the folder of the run, such as --workdir=runs/digits')
  try:
    return files.resolved(found) if found else None
  except ValueError as error:
    raise ValueError(f'--workdir={error}') from error
