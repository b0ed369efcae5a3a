"""--mode=train: from a config to a trained, sampled and evaluated model, read from top to bottom."""

from collections.abc import Callable
import contextlib
import math
import pathlib
import time

from clu import parameter_overview
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from eqflow.config import recipes
from eqflow.config.errors import ConfigError, naming
from eqflow.data import pipeline, sources
from eqflow.models import embed
from eqflow.runs import claim, dataset, generate, identity, restore, run
from eqflow.training import checkpoint, logging, nonfinite, sharding, snapshots, train_state, train_step
from eqflow.training.runtime import ledger, multihost, preemption, watchdog


def train(config: ConfigDict, workdir: pathlib.Path,
          stop: preemption.Stop | None = None,
          book: ledger.Ledger | None = None) -> train_state.TrainState:
  """Trains until config.train.num_examples, going on from the newest whole checkpoint in workdir.

  Writes config.json, metrics.jsonl, ledger.jsonl, tensorboard/, samples-*.png, checkpoints/ and
  snapshots/ there. Wall time is booked in `book`, or in a ledger of this call alone.
  Raises ValueError for a config that cannot run, before anything compiles; FloatingPointError with
  the step where loss or gradient is not finite: no such state is written; OSError where a checkpoint
  cannot be; signals.Stopped, with the state saved, where `stop` is asked for.
  """
  recipe, mesh = recipes.recipe(config), run.mesh_of(config)
  section = config.train
  check_averages(config)
  # Evaluation follows: a guide that is none must not be found out after the training.
  restore.guide_of(config, recipe)
  check_parts(config, mesh, recipe.rules)
  source = dataset.evaluation_source(config)
  if config.evaluate.split != config.data.split or config.data.name == 'pairs':
    source = dataset.open_source(config)
  process, count = jax.process_index(), jax.process_count()
  with (claim.claimed(config, workdir, source),
        ledger.booked(workdir, book, active=process == 0) as book,
        watchdog.watching(workdir, section.stuck_seconds, book.pulse, process=process, count=count)):
    return _train(config, recipe, source, mesh, workdir, stop or preemption.Stop(), book)


def _train(config, recipe, source, mesh, workdir, stop, book):
  section = config.train
  with checkpoint.open_checkpoints(workdir, keep=section.keep_checkpoints,
                                   run=identity.identity(config)) as checkpoints:
    with book.on('restore'):
      restored = checkpoints.restore(_like(config, recipe, mesh), mend=True)
    if restored and int(restored.seed) != config.seed:
      # Written before checkpoints had the name of their run.
      raise ValueError(f'the newest checkpoint of {workdir} is of a run with config.seed='
                       f'{int(restored.seed)}, not {config.seed}: restore its own from a copy, or give '
                       'another --workdir')
    multihost.broadcast(lambda: _check_kept(workdir, anew=restored is None))
    state = restored or create(config, recipe, mesh)
    book.begin(int(state.step) if restored else None)
    # Before the step compiles, so that a signal may end that at once.
    with book.on('save'):
      checkpoints.save(state)
      checkpoints.wait()
    if jax.process_index() == 0:
      if source.damaged:
        print(f'{source.name}: left out {len(source.damaged)} damaged images, listed in data.json')
      describe(state, mesh, recipe.rules, resumed=restored is not None)
    step = make_step(config, recipe, mesh, state)
    # Examples are counted in whole batches, the last one too.
    until = math.ceil(section.num_examples / section.batch)
    return fit(config, recipe, source, step, state, workdir, until=until, checkpoints=checkpoints,
               stop=stop, book=book)


def _check_kept(workdir, *, anew):
  """Raises ValueError where snapshots cannot go on, or what had checkpoints would be begun anew."""
  times = snapshots.listed(workdir / 'snapshots')
  if anew and (times or ledger.reached(workdir / 'ledger.jsonl')):
    raise ValueError(f'{workdir / "checkpoints"} holds no checkpoint, but its ledger.jsonl or '
                     'snapshots are of a training that had some: bring the checkpoints back (is a disk '
                     'not mounted?), or start anew in another --workdir')


def _like(config, recipe, mesh):
  """What a checkpoint is read into: no state on the devices, which have little room for two.

  But for the guard, which checkpoints from before it do not hold.
  """
  like = create(config, recipe, mesh, abstract=True)
  places = jax.tree.map(lambda a: a.sharding, like.guard)
  return like.replace(guard=jax.device_put(nonfinite.start(recipe.scale), places))


def create(config: ConfigDict, recipe: recipes.Recipe, mesh: Mesh, *,
           abstract: bool = False) -> train_state.TrainState:
  """The state that a run starts from, on the mesh; only shapes and shardings if abstract."""
  return train_state.create(recipe.init, recipe.optimizer, recipes.ema_names(config), config.seed, mesh,
                      rules=recipe.rules, histogram=recipe.histogram, scale=recipe.scale,
                      abstract=abstract)


def make_step(config: ConfigDict, recipe: recipes.Recipe, mesh: Mesh,
              state: train_state.TrainState) -> Callable:
  """The compiled step of a run whose states are placed as this one."""
  return train_step.make_step(
      recipe.loss, recipe.optimizer, recipe.share, mesh,
      places=jax.tree.map(lambda a: a.sharding, state), accumulate=config.train.accumulate,
      measure=recipe.measure, prepare=recipe.prepare, skip=config.train.max_skipped > 0,
      scaled=recipe.scale != 1)


def blueprint(config: ConfigDict, recipe: recipes.Recipe, mesh: Mesh) -> tuple[Callable, tuple]:
  """(step, (state, metrics, batch)): what training compiles, of shapes and shardings alone."""
  state, b = create(config, recipe, mesh, abstract=True), config.train.batch
  metrics = jax.tree.map(
      lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding.replicated(mesh)),
      jax.eval_shape(train_state.TrainMetrics.empty))
  rows = {'x': ((b, *config.data.shape), np.float32), 'label': ((b,), np.int32),
          'index': ((b,), np.uint32)}
  if recipe.couple or config.data.name == 'pairs':
    rows['eps'] = rows['x']
  batch = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.by_example(mesh))
           for name, (shape, dtype) in rows.items()}
  return make_step(config, recipe, mesh, state), (state, metrics, batch)


def fit(config: ConfigDict, recipe: recipes.Recipe, source: sources.Source, step: Callable,
        state: train_state.TrainState, workdir: pathlib.Path, *, until: int,
        checkpoints: checkpoint.Checkpoints, stop: preemption.Stop,
        book: ledger.Ledger | None = None) -> train_state.TrainState:
  """The loop: `step` on batch after batch from where `state` stands to `until` updates.

  The state is saved every config.train.checkpoint_examples, at the end, and where a signal asks for
  one; never one whose last update was not finite.
  """
  section, mesh = config.train, run.mesh_of(config)
  every = lambda examples: max(1, round(examples / section.batch))
  first, alone = jax.process_index() == 0, jax.process_count() == 1
  own, readers = sharding.own_rows(mesh)
  start = at = since = int(state.step)
  writer = logging.Writer(workdir, step=at, active=first)
  progress = logging.Progress(section.num_examples, at * section.batch, active=first)
  batches = pipeline.batches(
      source, seed=config.seed, batch=section.batch, start=at * section.batch,
      process_index=own, process_count=readers,
      workers=config.data.workers, flip=config.data.flip, couple=recipe.couple)
  running, health, before, clock = train_state.empty_metrics(mesh), None, None, time.perf_counter()
  check = lambda health, at: nonfinite.check_health(health, at, section.max_skipped, progress.say)
  book = book or ledger.Ledger()
  book.step = at
  book.turn('step')

  with (contextlib.closing(batches), contextlib.closing(writer), contextlib.closing(progress),
        stop.busy()):
    while at < until:
      # The first step compiles, and what it starts from is saved.
      with stop.free() if at == start else contextlib.nullcontext():
        with book.on('data', beside=health):
          batch = next(batches)
          batch = sharding.place_batch(batch, mesh)
          if not alone:
            # Processes hear of a signal one by one, and must answer it at the same step.
            batch['asked'] = sharding.of_each(float(bool(stop.asked)), mesh)
        with book.on('compile' if at == start else 'step'):
          state, running, fresh = step(state, running, batch)
      checkpoints.check()
      # A step late, so that the device never waits to be asked.
      check(health, at)
      asked = stop.asked if alone else before is not None and before[4] > 0
      health, before, book.step, at = fresh, fresh, at + 1, at + 1
      logs, saves, keeps, shows = (bool(examples) and (at % every(examples) == 0) for examples in (
          section.log_examples, section.checkpoint_examples, config.ema.snapshot_examples,
          section.sample_examples))
      if logs or saves or keeps or shows or asked or at == until:
        health = check(health, at)

      if logs or at == until:
        values = {name: float(value) for name, value in running.compute().items()}
        speed = (at - since) * section.batch / (time.perf_counter() - clock)
        writer.scalars(at, {'examples': at * section.batch, **values, 'examples_per_second': speed,
                            **skipped(config, state)})
        progress.show(at * section.batch, values['loss'], speed)
        running, since, clock = train_state.empty_metrics(mesh), at, time.perf_counter()

      # Before the checkpoint: a run that goes on from there would not come by here again.
      if keeps or (config.ema.snapshot_examples and at == until):
        with book.on('save'):
          keep_snapshot(config, state, workdir)

      if saves or shows or asked or at == until:
        with book.on('save'):
          checkpoints.save(state)
          if asked or at == until:
            # Here, where no other signal ends the process before it stands.
            checkpoints.wait()
        book.cut(at)

      if asked:
        # Where one has left alone, the others would wait for it.
        multihost.part()
        stop.leave(told=True)

      if shows and at < until:
        paused = time.perf_counter()
        with book.on('save'):
          checkpoints.wait()
        # Of several processes one that left now would leave the others waiting: at the next step.
        with stop.free() if alone else contextlib.nullcontext(), book.on('evaluate'):
          preview(config, recipe, state, writer, progress, workdir, book.beat)
        clock += time.perf_counter() - paused
  return state


def check_parts(config: ConfigDict, mesh: Mesh, rules: sharding.Rules) -> None:
  """Raises ValueError for batches and networks that the mesh or its processes cannot share."""
  section = config.train
  sharding.check_divides(section.batch, section.accumulate, mesh)
  sharding.check_tensor(rules, mesh)
  with naming('mesh'):
    _, readers = sharding.own_rows(mesh)
  if config.loss.dispersive and section.accumulate > 1 and readers > 1:
    raise ConfigError('loss.dispersive', config.loss.dispersive, 'couples the examples of a '
                      'microbatch, '
                      f'which differ between 1 and {readers} processes',
                      'use --config.train.accumulate=1')


def check_averages(config: ConfigDict) -> None:
  """Raises ValueError for averages that training cannot keep, sample or write snapshots of."""
  section, names = config.ema, ['params', *recipes.ema_names(config)]
  if config.sample.params not in names:
    raise ConfigError('sample.params', config.sample.params, 'is made by --mode=reconstruct, after '
                      'training', f'train with one of {names}')
  if section.snapshot_examples and not section.stds:
    raise ConfigError('ema.snapshot_examples', section.snapshot_examples, 'needs power averages, but '
                      'config.ema.stds is empty', "use --config.ema.stds='(0.05, 0.1)'")
  if section.snapshot_dtype not in snapshots.DTYPES:
    raise ConfigError('ema.snapshot_dtype', section.snapshot_dtype,
                      f'must be one of {snapshots.DTYPES}')


def keep_snapshot(config: ConfigDict, state: train_state.TrainState, workdir: pathlib.Path) -> None:
  """The power averages of the state to workdir/snapshots, where nothing is ever deleted."""
  averages = {repr(std): state.emas[repr(std)] for std in config.ema.stds}
  snapshots.write(workdir / 'snapshots', int(state.examples), averages, run=identity.identity(config),
                  dtype=config.ema.snapshot_dtype)


def skipped(config: ConfigDict, state: train_state.TrainState) -> dict[str, float | int]:
  """{'skipped': steps left out so far}, and the gradient's scale, where a run may leave any out."""
  if not config.train.max_skipped:
    return {}
  return {'skipped': int(state.guard.skipped), 'scale': float(state.guard.scale)}


def describe(state: train_state.TrainState, mesh: Mesh, rules: sharding.Rules, *,
             resumed: bool) -> None:
  """Prints the parameter table, and where the run stands."""
  print(parameter_overview.get_parameter_overview(state.params, include_stats=False))
  total, trainable = embed.count(state.params)
  print(f'{total:,} parameters, {trainable:,} of them trained, on {jax.device_count()} '
        f'{jax.devices()[0].platform} device(s): {dict(mesh.shape)}')
  for name, axes in sharding.undivided(state.params, rules, mesh).items():
    print(f'{name} is not cut along {", ".join(axes)}, which divides none of its sizes')
  print(f'going on from step {int(state.step):,}' if resumed else 'starting anew', flush=True)


def preview(config: ConfigDict, recipe: recipes.Recipe, state: train_state.TrainState,
            writer: logging.Writer, progress: logging.Progress, workdir: pathlib.Path,
            beat: Callable[[], None]) -> None:
  """A first look while training: samples-<step>.png and TensorBoard."""
  at, classes = int(state.step), config.data.num_classes
  count = 1_000 if len(config.data.shape) == 1 else 100
  label = np.arange(count, dtype=np.int32) % max(classes, 1)
  params = train_state.parameters(state, config.sample.params)
  x, *_ = generate.draw(recipe, params, label, seed=config.seed, batch=config.sample.batch, beat=beat)
  if jax.process_index():
    return   # All have drawn.
  picture = generate.picture(x, label)
  path = workdir / f'samples-{at:07d}.png'
  generate.images.save_png(path, picture)
  writer.picture(at, 'samples', picture)
  progress.say(f'samples at step {at:,}: {path}')
