"""python -m eqflow.main --config=configs/digits.py --workdir=runs/digits [--mode=train]"""

from eqflow.training.runtime import preemption, streams

if __name__ == '__main__':
  # Before the imports below, which take seconds.
  streams.begin()
  preemption.answer()

import contextlib
import importlib
import pathlib
import shlex
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

try:
  from absl import app, flags, logging
except ImportError:
  streams.last("the program needs more packages than the library: pip install -e '.[train]'")
  sys.exit(1)
import jax
from ml_collections import ConfigDict, config_flags

from eqflow.commands import options, words
from eqflow.config.errors import naming
from eqflow.runs.run import Run, run_of
from eqflow.training.runtime import compile_cache, ledger, multihost

# {mode: its function in eqflow/commands}, of a Run and of the flags that were given, of
# commands/options.py. They are imported when they run: a rejected config needs none of them.
COMMANDS = {
    'sample': 'sample.sample', 'pairs': 'pairs.draw_pairs', 'denoise': 'denoise.denoise',
    'ood': 'ood.detect', 'reconstruct': 'posthoc_ema.reconstruct', 'sweep': 'posthoc_ema.sweep',
}
# train and evaluate may be one of several processes; plan has neither folder nor devices.
MODES = 'train', 'evaluate', *COMMANDS, 'plan'

# What a user can fix: one line, exit code 2. Another exception has exit code 1, and its traceback is in
# the log. 74 is os.EX_IOERR: all is done and written, but not all could be printed. 70 is that of the
# watchdog: another process has ended.
REJECTIONS = ValueError, OSError, FloatingPointError, ImportError
UNPRINTED, UNEXPECTED, LOST = 74, 1, 70
_PATIENCE = 10.0   # seconds that a process which fails waits for the others to fail alike

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
    if mode in ('train', 'evaluate'):
      train_and_evaluate(mode, config, workdir, given)
      return
    if workdir and workdir.is_dir():
      streams.log_to(workdir / f'log-{mode}.txt')
    with preemption.watched(preemption.AGAIN):
      if mode == 'plan':
        from eqflow.commands import plan
        plan.plan(config, workdir, **given)
      else:
        run = opened(config, workdir)
        file, function = COMMANDS[mode].split('.')
        getattr(importlib.import_module(f'eqflow.commands.{file}'), function)(run, **given)
  except preemption.Stopped as stopped:
    preemption.end(*stopped.args)
  except REJECTIONS as error:
    reject(error)


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
    run = opened(config, workdir)
    from eqflow.commands import evaluate, train
    if mode == 'train':
      train.train(run, stop, book)
    elif workdir.is_dir():
      process = jax.process_index()
      streams.log_to(workdir / f'log-evaluate{f"-{process}" * (process > 0)}.txt')
    # What has been drawn and compared is drawn and compared again.
    stop.remedy = preemption.AGAIN
    # Few records can be trained on, as after --mode=train, but not evaluated.
    evaluate.evaluate(run, book=book, few=mode == 'train', **given)
  if jax.process_index() == 0:
    print(next_commands(config, workdir), flush=True)
  multihost.leave()


def opened(config: ConfigDict, workdir: pathlib.Path) -> Run:
  """The run of a config in `workdir`, with the programs on disk that were compiled before."""
  run = run_of(config, workdir)
  with naming('train.compile_cache'):
    compile_cache.use(run.config.train.compile_cache)
  return run


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
  parts = [f'--config={config_flags.get_config_filename(given)}', f'--workdir={workdir}',
           *(f'--config.{key}={value}' for key, value in overrides.items())]
  lines = ['python -m eqflow.main']
  for word in [*map(shlex.quote, parts), more]:
    if len(lines[-1]) + len(word) < 96:
      lines[-1] += f' {word}'
    else:
      lines.append(f'    {word}')
  return ' \\\n  '.join(lines)


def reject(error: Exception | str) -> NoReturn:
  """One line on stderr, and exit code 2."""
  streams.last(str(error))
  sys.exit(2)


def end(program: Callable) -> NoReturn:
  """Runs the program and exits with its code; unless that is 0, the last line says what happened."""
  try:
    code = program()
  except SystemExit as ended:
    code = ended.code
    if isinstance(code, str):
      streams.last(code)
      code = UNEXPECTED
  except BaseException as error:
    traceback.print_exc()
    line, code = unexpected(error)
    streams.last(line)
  if not code and streams.lost() and flags.FLAGS.is_parsed() and flags.FLAGS.mode != 'train':
    streams.last(f'all files are written, but standard output is not ({streams.lost()}): the log in '
                 '--workdir, if one is given, has it')
    code = UNPRINTED
  if jax.distributed.is_initialized() and code != LOST:
    streams.end()
    # The others, which fail alike, must be able to say so: JAX ends them when process 0 has gone.
    multihost.leave(_PATIENCE)
  preemption.exit_now(code or 0)


def unexpected(error: BaseException) -> tuple[str, int]:
  """(line, exit code) of an exception that is not one of REJECTIONS."""
  text = (str(error).strip().splitlines() or [''])[0][:300]
  if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error):
    return (f'out of memory ({text}): use a smaller config.train.batch or config.sample.batch, or a '
            'larger config.train.accumulate; --mode=plan shows what a step needs'), UNEXPECTED
  if jax.distributed.is_initialized() and isinstance(error, jax.errors.JaxRuntimeError):
    return (f'another process of this run has ended or cannot be reached ({text}): read its last line, '
            'then start all processes again to resume from the last checkpoint'), LOST
  where = traceback.extract_tb(error.__traceback__)[-1]
  return (f'{type(error).__name__}: {text}, line {where.lineno} of {where.filename}: a bug of eqflow '
          'or of a library; please report it'), UNEXPECTED


def parse(argv: list[str]) -> list[str]:
  """Parses flags and config overrides; exits with one line that names a wrong one."""
  try:
    return flags.FLAGS(options.last_of_each(argv))
  except Exception as error:
    # absl and ml_collections raise errors of many kinds, in their own words.
    reject(words.of(error, argv))


if __name__ == '__main__':
  end(lambda: app.run(main, flags_parser=parse))
