"""--mode=train: from a config to a trained model, read from top to bottom."""

from collections.abc import Callable
import contextlib
import math
import pathlib

import jax
from ml_collections import ConfigDict
import numpy as np

from eqflow.config import consistency
from eqflow.config.errors import ConfigError
from eqflow.data import pipeline, sources
from eqflow.fields import Model
from eqflow.evaluation import images
from eqflow.runs import blueprint, claim, dataset, generate, identity, rehearsal, room, second_run
from eqflow.runs.run import Run
from eqflow.training import (
    checkpoint, logging, loop, nonfinite, overview, progress, sharding, snapshots, train_state)
from eqflow.training.runtime import ledger, multihost, preemption, streams, watchdog


def train(run: Run, stop: preemption.Stop | None = None,
          book: ledger.Ledger | None = None) -> train_state.TrainState:
  """Trains until config.train.num_examples, or until_examples, from the newest undamaged checkpoint.

  Writes config.json, data.json, records.txt, parameters.txt, log.txt, metrics.jsonl, ledger.jsonl,
  tensorboard/, samples-*.png, checkpoints/ and snapshots/ there. Wall time is booked in `book`, or in a
  new ledger.
  Raises ValueError for a config that cannot run, before anything compiles; FloatingPointError for a
  loss, gradient or parameters that are not finite, which are not saved; OSError if a checkpoint
  cannot be written; preemption.Stopped, with the state saved, if a signal came to `stop`.
  """
  config, workdir = run.config, run.workdir
  identity.check_config(config, workdir)
  # Evaluation follows: what it would reject must not be found after hours of training.
  second_run.guide_of(run)
  consistency.check_training(config, run.recipe.model, run.recipe.averages, run.mesh)
  room.check_training(run)
  like = blueprint.first_state(config, run.recipe, run.mesh, abstract=True)
  room.check_state(like, run.mesh)
  process = jax.process_index()
  with contextlib.ExitStack() as stack:
    book = book or stack.enter_context(contextlib.closing(ledger.Ledger()))
    # Before the data are opened: they may be on a disk that does not answer.
    stack.enter_context(watchdog.watching(
        workdir, config.train.stuck_seconds, book.pulse, process=process, count=jax.process_count()))
    source = dataset.evaluation_source(run, few=True)
    if config.evaluate.split != config.data.split or config.data.name == 'pairs':
      source = dataset.open_source(config)
    rehearsal.rehearse(run)
    stack.enter_context(claim.claimed(config, workdir, source))
    streams.log_to(workdir / f'log{f"-{process}" * (process > 0)}.txt')
    stack.enter_context(ledger.booked(workdir, book, active=process == 0))
    checkpoints = stack.enter_context(checkpoint.open_checkpoints(
        workdir, keep=config.train.keep_checkpoints, run=identity.identity(config)))
    if process == 0:
      print(dataset.described(source), flush=True)
    state = started(run, like, checkpoints, book)
    until = last_step(config, int(state.step))
    if int(state.step) >= until:
      return state
    # Outside `stop.busy`: a signal exits immediately, since the state is saved.
    progress.say('compiling the training step: seconds for a small network, minutes for a large one')
    with book.on('compile'):
      step = blueprint.compiled(config, run.recipe, run.mesh)
    return trained(run, source, state, step, until, checkpoints, stop or preemption.Stop(), book)


def last_step(config: ConfigDict, step: int) -> int:
  """The step at which the training stops: examples are counted in whole batches, the last one too.

  Raises ConfigError if the run has made a `step` after the end of its training.
  """
  section = config.train
  whole = math.ceil(section.num_examples / section.batch)
  if step > whole:
    raise ConfigError('train.num_examples', section.num_examples,
                      f'is below the {step * section.batch:,} examples that this run has seen',
                      'use as many or more, or another --workdir')
  return min(whole, math.ceil((section.until_examples or section.num_examples) / section.batch))


def started(run: Run, like: train_state.TrainState, checkpoints: checkpoint.Checkpoints,
            book: ledger.Ledger) -> train_state.TrainState:
  """The state of the newest checkpoint; prints the parameter table.

  A new state is saved first and read back: what cannot be restored is found before the first step.
  Raises ValueError if workdir had checkpoints before and has lost them.
  """
  config, workdir, recipe, mesh = run
  room.check_saves(config, workdir, like, len(checkpoints.steps()))
  with book.on('restore'):
    restored = checkpoints.restore(like, repair=True)
  if restored is None:
    multihost.broadcast(lambda: _check_new(workdir))
  book.step = int(restored.step) if restored else 0
  book.begin(book.step if restored else None)
  with book.on('save'):
    state = restored or _read_back(blueprint.first_state(config, recipe, mesh), like, checkpoints)
  if jax.process_index() == 0:
    print(overview.describe(state.params, mesh, recipe.model.rules, workdir / 'parameters.txt'))
    print(f'resuming from step {book.step:,}' if restored else 'starting from scratch', flush=True)
  return state


def _read_back(state, like, checkpoints):
  checkpoints.save(state)
  checkpoints.wait()
  return checkpoints.restore(like)


def _check_new(workdir):
  if snapshots.listed(workdir / 'snapshots') or ledger.reached(workdir / 'ledger.jsonl'):
    raise ValueError(f'{workdir / "checkpoints"} has no checkpoint, but ledger.jsonl or snapshots show '
                     'that it had some: restore the checkpoints (is a disk not mounted?), or choose '
                     'another --workdir')


def trained(run: Run, source: sources.Source, state: train_state.TrainState, step: Callable, until: int,
            checkpoints: checkpoint.Checkpoints, stop: preemption.Stop,
            book: ledger.Ledger) -> train_state.TrainState:
  """`loop.fit` from `state` to `until` steps, with the data, the log and the saves of a run."""
  config, section, start = run.config, run.config.train, int(state.step)
  own, readers = sharding.own_rows(run.mesh)
  rows = pipeline.batches(
      source, seed=config.seed, batch=section.batch, start=start * section.batch, process_index=own,
      process_count=readers, workers=config.data.workers, flip=config.data.flip,
      couple=run.recipe.objective.couple)
  log = logging.Log(run.workdir, step=start, until=until, batch=section.batch,
                    active=jax.process_index() == 0)
  batches, step = book.timed_loop((sharding.place_batch(each, run.mesh) for each in rows), step)
  book.switch('step')
  do, at = actions(run, log, checkpoints, stop, book), cadence(config)
  with contextlib.closing(rows), contextlib.closing(log), stop.busy():
    if start and at.at(start, last=False).preview and not multihost.broadcast(
        lambda: picture_of(run, start).exists()):
      do.preview(state)   # The run ended before or in it.
    return loop.fit(state, step, batches, until, at,
                    do, multihost.agreeing(stop, run.mesh))


def cadence(config: ConfigDict) -> loop.Cadence:
  """What the config gives in examples, in steps."""
  every = lambda examples: max(1, round(examples / config.train.batch)) if examples else 0
  return loop.Cadence(
      log=every(config.train.log_examples), snapshot=every(config.ema.snapshot_examples),
      save=every(config.train.checkpoint_examples), preview=every(config.train.sample_examples))


def actions(run: Run, log: logging.Log, checkpoints: checkpoint.Checkpoints, stop: preemption.Stop,
            book: ledger.Ledger) -> loop.Actions:
  """What this run does between its steps, each booked to its account."""
  def check(pending):
    checkpoints.check()
    if pending is not None:
      nonfinite.check(*pending, run.config.train.max_skipped, log.progress.say)

  def write(n, state):
    # A skipped step does not count as an update. The rate is the one of the last update.
    updates = n - int(state.guard.skipped)
    log.write(n, train_state.means(state) | skipped(run.config, state) | dict(
        learning_rate=float(run.recipe.rate(np.int32(max(updates - 1, 0))))))

  def save(state, *, wait):
    with book.on('save'):
      log.writer.sync()
      checkpoints.save(state)
      if wait:
        checkpoints.wait()
    book.saved(int(state.step))

  def show(state):
    with log.paused():
      with book.on('save'):
        checkpoints.wait()
      # Everything is saved. Of several processes, one that left now would leave the others waiting.
      alone = jax.process_count() == 1
      with stop.interruptible() if alone else contextlib.nullcontext(), book.on('evaluate'):
        try:
          preview(run, state, log, book.beat)
        except preemption.Stopped:
          raise
        except Exception as error:
          # A training is worth more than a picture of it.
          log.progress.say(f'no samples at step {int(state.step):,}: {type(error).__name__}: {error}')

  return loop.Actions(
      check=check, log=write, save=save, preview=show,
      snapshot=book.timed('save', lambda state: keep_snapshot(run, state)))


def keep_snapshot(run: Run, state: train_state.TrainState) -> None:
  """Writes the power EMAs of the state to workdir/snapshots, where nothing is ever deleted."""
  section = run.config.ema
  averages = {repr(std): state.emas[repr(std)] for std in section.stds}
  snapshots.write(run.workdir / 'snapshots', int(state.examples), averages,
                  run=identity.identity(run.config), dtype=section.snapshot_dtype)


def skipped(config: ConfigDict, state: train_state.TrainState) -> dict[str, float | int]:
  """{'skipped': steps skipped so far, 'scale': the loss scale}, for a run that may skip any."""
  if not config.train.max_skipped:
    return {}
  return {'skipped': int(state.guard.skipped), 'scale': float(state.guard.scale)}


def picture_of(run: Run, step: int) -> pathlib.Path:
  """The picture of the preview after a step."""
  return run.workdir / f'samples-{step:07d}.png'


def preview(run: Run, state: train_state.TrainState, log: logging.Log,
            beat: Callable[[], None]) -> None:
  """Draws a few samples while training, to samples-<step>.png and TensorBoard."""
  config, workdir, recipe, _ = run
  at, classes = int(state.step), config.data.num_classes
  count = 1_000 if len(config.data.shape) == 1 else images.fitting(tuple(config.data.shape))
  label = np.arange(count, dtype=np.int32) % max(classes, 1)
  progress.say(f'drawing {count:,} samples at step {at:,}; the first preview compiles the sampler')
  params = train_state.parameters(state, config.sample.params)
  models = [Model(recipe.model.network, params)]
  x, *_ = generate.samples(recipe.sampling, models, label, seed=config.seed,
                           batch=config.sample.batch, beat=beat)
  if jax.process_index():
    return   # All processes draw, the first one writes.
  sampled = f'samples of {train_state.called(config.sample.params)}, step {at:,}'
  picture = generate.picture(x, label, title=sampled, names=generate.class_names(run))
  path = picture_of(run, at)
  log.writer.picture(at, 'samples', picture)
  images.save_png(path, picture)
  log.progress.say(f'{sampled}: {path}')
