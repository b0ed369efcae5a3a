"""python -m eqflow.main --config=configs/digits.py --workdir=runs/digits [--mode=train]"""

from eqflow.training.runtime import preemption

if __name__ == '__main__':
  # Before the imports below, which take seconds.
  preemption.answer()

import contextlib
import pathlib
import re
import shlex
import sys
from typing import Any, NoReturn

try:
  from absl import app, flags, logging
except ImportError:
  sys.exit("eqflow: the program needs more packages than the library: pip install -e '.[train]'")
import jax
from ml_collections import ConfigDict, config_flags

from eqflow.commands import denoise, evaluate, ood, options, pairs, plan, posthoc_ema, sample, train
from eqflow.config.errors import ConfigError
from eqflow.runs.run import run_of
from eqflow.training.runtime import ledger, multihost

# Each takes a Run and the flags that were given, of commands/options.py.
COMMANDS = {
    'sample': sample.sample, 'pairs': pairs.draw_pairs, 'denoise': denoise.denoise, 'ood': ood.detect,
    'reconstruct': posthoc_ema.reconstruct, 'sweep': posthoc_ema.sweep,
}
# train and evaluate may be one of several processes; plan has neither folder nor devices.
MODES = 'train', 'evaluate', *COMMANDS, 'plan'

# What a user can fix: one line, exit code 2. Any other exception is a bug and keeps its traceback.
REJECTIONS = ValueError, OSError, FloatingPointError, ImportError

options.define(MODES)
flags.adopt_module_key_flags(options)


def main(argv: list[str]) -> None:
  """Runs --mode with the flags that were given."""
  logging.set_verbosity(logging.WARNING)
  try:
    if len(argv) > 1:
      raise ValueError(f'unexpected arguments {argv[1:]}; write flags as --name=value')
    mode = flags.FLAGS.mode
    given, config, workdir = options.given(mode), options.config(), options.workdir(mode)
    if mode == 'plan':
      preemption.unanswered()
      plan.plan(config, workdir, **given)
    elif mode in COMMANDS:
      preemption.unanswered()
      COMMANDS[mode](run_of(config, workdir), **given)
    else:
      train_and_evaluate(mode, config, workdir, given)
  except preemption.Stopped as stopped:
    preemption.end(str(stopped))
  except REJECTIONS as error:
    reject(error)
  except KeyboardInterrupt:
    print('eqflow: stopped; the same command continues from the last checkpoint', file=sys.stderr)
    sys.exit(130)


def train_and_evaluate(mode: str, config: ConfigDict, workdir: pathlib.Path,
                       given: dict[str, Any]) -> None:
  """--mode=train or evaluate: saves before a signal ends it, and books its wall time."""
  distributed, *cluster = (given.pop(name, None) for name in options.CLUSTER)
  book = ledger.Ledger(since=ledger.created())
  if distributed:
    # JAX's own handler of SIGTERM goes with this block.
    with preemption.watched():
      multihost.join(*cluster)
  with preemption.watched() as stop, contextlib.closing(book):
    run = run_of(config, workdir)
    if mode == 'train':
      train.train(run, stop, book)
    evaluate.evaluate(run, book=book, **given)
  if jax.process_index() == 0:
    print(next_commands(config, workdir), flush=True)
  multihost.leave()


def next_commands(config: ConfigDict, workdir: pathlib.Path) -> str:
  """Three commands to continue with, two of them with the config and the overrides of this one."""
  labels = ' --labels=0,1' if config.data.num_classes > 1 else ''
  return ('\nto sample, to look for copies of training examples, to see where the time went:\n'
          f'  {again(workdir, "--mode=sample --num_samples=400" + labels)}\n'
          f'  {again(workdir, "--mode=evaluate --neighbours")}\n'
          f'  python -m eqflow.training.runtime.ledger {shlex.quote(str(workdir))}')


def again(workdir: pathlib.Path, more: str) -> str:
  """The program with this config and its overrides, the folder and `more`, wrapped at 100 columns."""
  given = flags.FLAGS['config']
  overrides = {key: value.to_dict() if isinstance(value, ConfigDict) else value
               for key, value in config_flags.get_override_values(given).items()}
  words = [f'--config={config_flags.get_config_filename(given)}', f'--workdir={workdir}',
           *(f'--config.{key}={value}' for key, value in overrides.items())]
  lines = ['python -m eqflow.main']
  for word in [*map(shlex.quote, words), more]:
    if len(lines[-1]) + len(word) < 96:
      lines[-1] += f' {word}'
    else:
      lines.append(f'    {word}')
  return ' \\\n  '.join(lines)


def reject(error: Exception | str) -> NoReturn:
  """One line on stderr, and exit code 2."""
  print('eqflow:', ' '.join(str(error).split()), file=sys.stderr, flush=True)
  if jax.distributed.is_initialized():
    # A regular exit waits for the other processes, which may wait for this one.
    preemption.exit_now(2)
  sys.exit(2)


def parse(argv: list[str]) -> list[str]:
  """Parses flags and config overrides; exits with one line that names a wrong one."""
  # ml_collections loads a file into the module of the one before, with its get_config.
  sys.modules.pop('config_config', None)
  try:
    return flags.FLAGS(argv)
  except (AttributeError, KeyError) as error:
    reject(_wrong_key(argv, error))
  except (flags.Error, TypeError, ValueError, OSError, SyntaxError) as error:
    text = str(error)
    if section := re.match(
        r"""flag --config\.([\w.]+)=.*: Failed to parse (['"])(.*)\2 as a ConfigDict""", text):
      key, _, given = section.groups()
      name = "{'name': ...}" if '{' in given else str({'name': given})
      reject(ConfigError(key, given, 'must be a section', f'use --config.{key}="{name}"'))
    # absl quotes a config file that raises with its traceback; the last line is the message.
    reject(text.strip().splitlines()[-1] if 'Traceback' in text else error)


def _wrong_key(argv, error):
  """The sentence about an override of a key that does not exist, or a file that does not load."""
  # ml_collections quotes its own message twice, and names only the last part of a key.
  text = str(error.args[0]).replace('\\n', ' ').replace("\\'", "'").strip('"')
  if "no attribute 'get_config'" in text:
    return '--config: the file has no get_config(); give one of configs/, such as configs/digits.py'
  missing = re.search(r"'([^']+)'", text)
  keys = [key for key in (arg.partition('=')[0].lstrip('-') for arg in argv)
          if missing and key.startswith('config.') and missing.group(1) in key.split('.')]
  if not keys:
    return f'the file of --config raises {type(error).__name__}: {text}'
  guess = re.search(r'Did you mean [^?]*\?', text)
  remedy = guess[0] if guess else options.whole_section(argv, keys[0]) or 'See the file of --config'
  return f'{keys[0]} is not a key of the config. {remedy}'


if __name__ == '__main__':
  app.run(main, flags_parser=parse)
