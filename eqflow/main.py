"""python -m eqflow.main --config=configs/digits.py --workdir=runs/digits [--mode=train]: flags only."""

from eqflow.commands import neighbours, plan, posthoc_ema
from eqflow.commands.denoise import finish
from eqflow.commands.evaluate import evaluate
from eqflow.commands.ood import score
from eqflow.commands.train import train
from eqflow.config import recipes
from eqflow.runs import claim, composition, generate, restore
from eqflow.training.runtime import ledger, multihost, preemption

if __name__ == '__main__':
  # Before all else is imported, which takes seconds.
  preemption.answer()

import contextlib
import json
import pathlib
import re
import sys
from typing import NoReturn

from absl import app, flags, logging
import jax
from ml_collections import ConfigDict, config_flags

_CONFIG = config_flags.DEFINE_config_file('config', None, 'A file of configs/, as x.py:variant.',
                                          lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of the run.')
_MODE = flags.DEFINE_enum('mode', 'train', ['train', 'evaluate', 'sample', 'finish', 'score', 'pairs',
                           'reconstruct', 'sweep', 'plan'], 'train goes on to evaluate at its end.')
_NUM_SAMPLES = flags.DEFINE_integer('num_samples', 100, 'mode=sample or pairs: how many.',
                                    lower_bound=1)
_LABELS = flags.DEFINE_list('labels', None, 'mode=sample or finish: classes, repeated in turn; those '
                            'joined by + are composed. Drawn if unset.')
_WEIGHTS = flags.DEFINE_list('weights', None, 'Of the fields that are composed, in order; equal, '
                             'summing to 1, if unset.')
_WITH = flags.DEFINE_list('with', None, 'mode=sample or finish: --workdir of other models, whose '
                          'fields are added.')
_SEED = flags.DEFINE_integer('seed', 0, 'mode=sample, finish or pairs: the i-th is a function of '
                             'this and i.', lower_bound=0, upper_bound=2**32 - 1)
_NEIGHBOURS = flags.DEFINE_bool('neighbours', False, 'mode=sample or evaluate: how near samples are to '
                                'training records.')
_INPUTS = flags.DEFINE_string('inputs', None, 'mode=finish or score: a .npy or .npz file.')
_NOISE = flags.DEFINE_float('noise', None, 'mode=finish: the time whose noise is mixed in first.')
_STD = flags.DEFINE_list('std', None, 'mode=reconstruct or sweep: widths of averages, as '
                         '0.03,0.05,...,0.25.')
_EXAMPLES = flags.DEFINE_integer('examples', None, 'mode=reconstruct or sweep: the time they are for, '
                                 'the last snapshot if unset.', lower_bound=1)
_SKIP_DAMAGED = flags.DEFINE_bool('skip_damaged', False, 'mode=reconstruct or sweep: go on without '
                                  'snapshots that are damaged or missing.')
_DISTRIBUTED = flags.DEFINE_bool('distributed', False, 'mode=train or evaluate: one of several '
                                 'processes; where the next three are unset, JAX finds them.')
_COORDINATOR = flags.DEFINE_string('coordinator', None, 'host:port of process 0.')
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'How many there are.', lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Which this is, from 0.', lower_bound=0)
_OUT = flags.DEFINE_string('out', None, 'mode=pairs: the folder to write them to.')
_TOPOLOGY = flags.DEFINE_string('topology', None, 'mode=plan: what is planned for, such as v5e:4x4, '
                                'h100:1x8x8 (partitions, hosts, GPUs a host) or cpu:8.')
_LEVERS = flags.DEFINE_bool('levers', True, 'mode=plan: where it does not fit, compile what may make '
                            'it fit.')

# The modes that use a flag, and what the others have instead.
MODES = {
    'num_samples': (('sample', 'pairs'), 'config.evaluate.num_samples is for evaluation'),
    'labels': (('sample', 'finish'), 'evaluation has the labels of the data, pairs all classes alike'),
    'weights': (('sample', 'finish'), 'nothing else is composed'),
    'with': (('sample', 'finish'), 'nothing else is composed'),
    'seed': (('sample', 'finish', 'pairs'), 'a run has config.seed'),
    'neighbours': (('sample', 'evaluate'), 'nothing else is a sample'),
    'inputs': (('finish', 'score'), 'nothing else has any'),
    'noise': (('finish',), 'samples start from noise, and scores are of inputs as they are'),
    **{name: (('reconstruct', 'sweep'), 'nothing else makes averages')
       for name in ('std', 'examples', 'skip_damaged')},
    **{name: (('train', 'evaluate'), 'the other modes are for one process')
       for name in ('distributed', 'coordinator', 'num_processes', 'process_id')},
    'out': (('pairs',), 'everything else is written to --workdir'),
    **{name: (('plan',), 'nothing else is compiled for devices that are not there')
       for name in ('topology', 'levers')},
}

# What a user can mend: shown as one line, with exit code 2. Everything else is a traceback.
REFUSALS = ValueError, OSError, FloatingPointError


def main(argv: list[str]) -> None:
  """Runs the mode asked for."""
  logging.set_verbosity(logging.WARNING)
  try:
    if len(argv) > 1:
      raise ValueError(f'unexpected arguments {argv[1:]}: flags are written --name=value')
    if not _WORKDIR.value and _MODE.value != 'plan':
      raise ValueError('--workdir is not set: give the folder of the run, such as '
                       '--workdir=runs/digits')
    if '://' in (_WORKDIR.value or ''):
      raise ValueError(f'--workdir={_WORKDIR.value}: give a folder of a file system; a bucket may be '
                       'mounted as one')
    config, workdir = given_config(), _WORKDIR.value and pathlib.Path(_WORKDIR.value)
    check_flags(_MODE.value)
    if _MODE.value not in ('train', 'evaluate'):
      preemption.unanswered()
    if _MODE.value == 'sample':
      draw_samples(config, workdir)
    elif _MODE.value == 'finish':
      finish(config, workdir, pathlib.Path(_INPUTS.value), seed=_SEED.value, noise=_NOISE.value,
             labels=_LABELS.value, weights=_WEIGHTS.value, others=_WITH.value)
    elif _MODE.value == 'score':
      score(config, workdir, pathlib.Path(_INPUTS.value))
    elif _MODE.value in ('reconstruct', 'sweep'):
      make = {'reconstruct': posthoc_ema.reconstruct, 'sweep': posthoc_ema.sweep}[_MODE.value]
      make(config, workdir, posthoc_ema.stds_of(_STD.value), examples=_EXAMPLES.value,
           skip_damaged=_SKIP_DAMAGED.value)
    elif _MODE.value == 'plan':
      plan.plan(config, _TOPOLOGY.value, workdir, levers=_LEVERS.value)
    elif _MODE.value == 'pairs':
      draw_pairs(config, workdir, pathlib.Path(_OUT.value), count=_NUM_SAMPLES.value,
                 seed=_SEED.value)
    else:
      book = ledger.Ledger(since=ledger.created())
      if _DISTRIBUTED.value:
        # JAX takes SIGTERM for itself there: who watches from here on has it again.
        with preemption.watched():
          multihost.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
      with preemption.watched() as stop, contextlib.closing(book):
        if _MODE.value == 'train':
          train(config, workdir, stop, book)
        evaluate(config, workdir, near=_NEIGHBOURS.value, book=book)
      if jax.process_index() == 0:
        print(f'\n{ledger.table(workdir / "ledger.jsonl")}', end='')
      multihost.leave()
  except preemption.Stopped as stopped:
    preemption.end(str(stopped))
  except REFUSALS as error:
    refuse(error)
  except KeyboardInterrupt:
    print('eqflow: stopped; the same command goes on from the last checkpoint', file=sys.stderr)
    sys.exit(130)


def check_flags(mode: str) -> None:
  """Raises ValueError for a flag that the mode does not use, or one that it cannot do without."""
  for name, (modes, instead) in MODES.items():
    if flags.FLAGS[name].present and mode not in modes:
      raise ValueError(f'--{name} is for --mode={" or ".join(modes)}: {instead}')
  given = [name for name in ('coordinator', 'num_processes', 'process_id') if flags.FLAGS[name].present]
  if given and not _DISTRIBUTED.value:
    raise ValueError(f'--{given[0]} is for one of several processes: add --distributed')
  if mode == 'pairs' and not (_OUT.value and _NUM_SAMPLES.present):
    raise ValueError('--mode=pairs needs --out, the folder to write them to, and --num_samples, how '
                     'many: as many as the data has records, or more')
  if mode == 'plan' and not _TOPOLOGY.value:
    raise ValueError('--mode=plan needs --topology, what it is planned for, such as v5e:4x4, '
                     'h100:1x8x8 or cpu:8')
  if mode in ('finish', 'score') and not _INPUTS.value:
    raise ValueError(f'--mode={mode} needs --inputs, a .npy file of an array '
                     "[n, *config.data.shape], or a .npz file that holds it as 'x' or 'samples'")


def given_config() -> ConfigDict:
  """The config of --config; raises ValueError where none is given or its file cannot be read."""
  if _CONFIG.value is None:
    raise ValueError('--config is not set: give a file, such as --config=configs/digits.py')
  try:
    _CONFIG.value.to_dict()
  except OSError as error:
    # ml_collections tells of a missing file only when the config is first read.
    raise ValueError(f'--config: {error}') from error
  return _CONFIG.value


def draw_samples(config: ConfigDict, workdir: pathlib.Path) -> None:
  """mode=sample: workdir/samples-seed<seed>.png and .npz."""
  default = generate.labels_of(_SEED.value, _NUM_SAMPLES.value, config.data.num_classes)
  found = composition.composed(config, workdir, _LABELS.value, default, weights=_WEIGHTS.value,
                               others=_WITH.value)
  x, evaluations, norms = generate.samples(found.sampling, found.models, found.labels,
                                           seed=_SEED.value, batch=config.sample.batch)
  path = workdir / f'samples-seed{_SEED.value}'
  generate.check_finite(x)
  generate.write(path, x, **found.columns, evaluations=evaluations, norms=norms)
  print(f'{len(x):,} samples of {config.sample.params!r} at step {found.step:,}: {path}.png, '
        f'{path}.npz\n{generate.steps_taken(config, evaluations)}'
        f'{generate.unsettled(config, norms)}', end='')
  if _NEIGHBOURS.value:
    neighbours.report(config, workdir, x)


def draw_pairs(config: ConfigDict, workdir: pathlib.Path, out: pathlib.Path, *, count: int,
               seed: int) -> None:
  """mode=pairs: a data set of `count` pairs (eps, x) of noise and sample, and their labels, in `out`.

  Pair i is a function of the model, seed and i; labels are drawn uniformly. Broken off, the same call
  goes on. Raises ValueError where the solver draws noise, or `out` holds other pairs.
  """
  recipe, classes = recipes.recipe(config), config.data.num_classes
  generate.check_pairs(recipe.sampling, recipe.model)
  step, models = restore.models(config, recipe, workdir)
  labels = generate.labels_of(seed, count, classes)
  made = {'config': json.loads(config.to_json_best_effort()), 'step': step, 'num_classes': classes,
          'shape': config.data.shape}
  with claim.locked(out, 'writing to', '--out'):
    norms = generate.write_pairs(recipe.sampling.pair, models, out, labels, seed=seed,
                                 batch=config.sample.batch, made=made)
  there = len(labels) - len(norms)
  print(f'{len(labels):,} pairs of {config.sample.params!r} at step {step:,}: {out}'
        f'{f", {there:,} of which were there" if there else ""}\n'
        f'{generate.unsettled(config, norms)}', end='')


def refuse(error: Exception | str) -> NoReturn:
  """One line on stderr, and exit code 2."""
  print('eqflow:', ' '.join(str(error).split()), file=sys.stderr, flush=True)
  if jax.distributed.is_initialized():
    # An orderly end would wait for the others, which may wait for this one.
    preemption.exit_now(2)
  sys.exit(2)


def parse(argv: list[str]) -> list[str]:
  """Flags and config overrides; whatever is misspelt or mistyped is refused by name."""
  try:
    return flags.FLAGS(argv)
  except (AttributeError, KeyError) as error:
    # ml_collections quotes its own message once too often, and names the last part of a key alone.
    text = str(error.args[0]).replace('\\n', ' ').replace("\\'", "'").strip('"')
    missing = re.search(r"'([^']+)'", text)
    whole = [arg.partition('=')[0].lstrip('-') for arg in argv
             if missing and missing.group(1) in arg.partition('=')[0].split('.')]
    guess = re.search(r'Did you mean [^?]*\?', text)
    refuse(f'{whole[0] if whole else text}: no such key in the config. '
           f'{guess.group(0) if guess else "The keys stand in the file given as --config"}')
  except (flags.Error, TypeError, ValueError, OSError, SyntaxError) as error:
    # A config file that raises is quoted with its whole traceback; the last line is its message.
    refuse(str(error).strip().splitlines()[-1] if 'Traceback' in str(error) else error)


if __name__ == '__main__':
  app.run(main, flags_parser=parse)
