"""A run's folder and data: checked before anything compiles, and claimed by one config."""

from collections.abc import Iterator
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh
from jax.tree_util import Partial
from ml_collections import ConfigDict

from eqflow import beside, build, draws, ema
from eqflow.data import pairs, sources
from eqflow.sections import naming
from eqflow.training import checkpoint, cluster, manifest, sharding, snapshots, step as steps

# Sections and keys that do not change what a run computes, only what is looked at and when.
FREE = ('sample', 'evaluate', 'mesh', 'data.dir', 'data.workers', 'train.log_examples',
        'train.sample_examples', 'train.checkpoint_examples', 'train.keep_checkpoints',
        'train.max_skipped', 'train.stuck_seconds', 'ema.snapshot_examples', 'ema.snapshot_dtype')


def mesh_of(config: ConfigDict, devices: Any = None) -> Mesh:
  """The mesh of config.mesh over `devices`, or all. Raises ValueError where they are not so many."""
  with naming('mesh'):
    return sharding.device_mesh(devices, **config.mesh)


def open_source(config: ConfigDict, *, split: str | None = None) -> sources.Source:
  """The data set of config.data. Raises ValueError where it cannot be had or is not as described."""
  section = config.data
  shape, split = tuple(section.shape), split or section.split
  size, channels = (shape[0], shape[2]) if len(shape) == 3 else (None, 3)
  try:
    source = sources.load(
        section.name, split=split, size=size, channels=channels,
        data_dir=pathlib.Path(section.dir).expanduser() if section.dir else None)
  except (ValueError, OSError) as error:
    raise ValueError(f'config.data (name {section.name!r}, dir {section.dir!r}, split {split!r}): '
                     f'{error}') from error
  if tuple(source.shape) != shape:
    raise ValueError(f'config.data.shape={shape}, but {source.name} has records of '
                     f'{tuple(source.shape)}: set config.data.shape to that')
  if section.num_classes not in (0, source.num_classes):
    raise ValueError(f'config.data.num_classes={section.num_classes}, but {source.name} has '
                     f'{source.num_classes}: set it to that, or to 0 to train without labels')
  return source


def evaluation_source(config: ConfigDict) -> sources.Source:
  """The records that samples are compared with: config.evaluate.split of config.data.

  For pairs, of the data that the first of the models behind them was trained on. Raises ValueError
  for what would fail only after training: batch, split, too few records.
  """
  sharding.check_rows(config.sample.batch, mesh_of(config))
  source = open_source(behind_pairs(config), split=config.evaluate.split)
  if len(source) < 8:
    raise ValueError(f'config.evaluate.split={config.evaluate.split!r} has {len(source)} records: '
                     'halves of at least 4 are compared by their third neighbours, so give 8 or more')
  return source


def behind_pairs(config: ConfigDict) -> ConfigDict:
  """The config, its data those of the model that drew its pairs, and so on while these are pairs."""
  while config.data.name == 'pairs':
    config = config.copy_and_resolve_references()
    with config.unlocked():
      config.data = ConfigDict(_record(config)['config']['data'])
  return config


def _record(config):
  try:
    return pairs.record(config.data.dir or None)
  except OSError as error:
    raise ValueError(f'config.data.dir={config.data.dir!r}: {error}') from error


def check_config(config: ConfigDict, workdir: pathlib.Path) -> None:
  """Raises ValueError where workdir holds the run of another config, naming every key that differs.

  Keys that only say what is looked at may differ; the folder of a data set of images may not.
  """
  path, ours = workdir / 'config.json', beside.SINCE | flat(config)
  if workdir.exists() and not workdir.is_dir():
    raise ValueError(f'--workdir={workdir} is a file: give a folder')
  if not path.exists():
    return
  try:
    theirs = beside.SINCE | flat(json.loads(path.read_text()))
  except (ValueError, AttributeError) as error:
    raise ValueError(f'{path} cannot be read ({error}): give another --workdir, or delete the file '
                     'to let the config given take its place') from error
  free = _free(config)
  differ = [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)
            and not any(key == name or key.startswith(name + '.') for name in free)]
  if differ:
    changes = ', '.join(f'config.{key}: {theirs.get(key)!r} there, {ours.get(key)!r} given'
                        for key in differ)
    raise ValueError(f'{workdir} holds a run of another config ({changes}): give another --workdir, '
                     'or the config it was made with')


def _free(config):
  """FREE, but for the folder where that says what the data are."""
  return [key for key in FREE if key != 'data.dir' or config.data.name != 'folder']


@contextlib.contextmanager
def claimed(config: ConfigDict, workdir: pathlib.Path, source: sources.Source) -> Iterator[None]:
  """Holds workdir for one training process, with the config and the data's digest written there.

  Raises ValueError where another config's run, other data or another process is there.
  """
  check_config(config, workdir)
  with contextlib.ExitStack() as stack:
    def enter():
      stack.enter_context(held(workdir, 'training in', '--workdir'))
      _check_data(workdir / 'data.json', source)
      _write(workdir / 'config.json', json.loads(config.to_json_best_effort()))
    # All hear of what the first process is refused: else they would wait for it.
    cluster.told(enter)
    yield


@contextlib.contextmanager
def held(folder: pathlib.Path, doing: str, flag: str) -> Iterator[None]:
  """The folder, made if need be and kept from other processes; ValueError where one holds it."""
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / '.lock').open('w') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise ValueError(f'another process is {doing} {folder}: wait for it, or give another '
                       f'{flag}') from error
    except OSError as error:
      raise ValueError(f'{lock.name} cannot be locked ({error}), so that two processes might write to '
                       f'{folder}: mount its file system with locks (Lustre: -o flock), or give '
                       f'another {flag}') from error
    yield


def _check_data(path, source):
  # What the records are: the files of a folder, the model behind pairs.
  names = getattr(source.records, 'made', '\n'.join(getattr(source.records, 'paths', ())))
  ours = {'records': len(source), 'damaged': list(source.damaged),
          'files': hashlib.sha256(names.encode()).hexdigest()}
  try:
    theirs = json.loads(path.read_text()) if path.exists() else ours
  except ValueError as error:
    raise ValueError(f'{path} cannot be read ({error}): restore it from a copy, or delete it where the '
                     'data are those that this run was trained on') from error
  if theirs != ours:
    raise ValueError(f'{source.name} has {len(source)} records that are not those this run was '
                     f'trained on ({path}): restore the data, or give another --workdir')
  _write(path, ours)


def _write(path, value):
  partial, text = path.with_suffix('.partial'), json.dumps(value, indent=2) + '\n'
  if path.exists() and path.read_bytes() == text.encode():
    return
  try:
    partial.write_text(text)
    # A name that is on the disk before its content is an empty file where the power fails.
    manifest.sync(partial)
    os.replace(partial, path)
    manifest.sync(path.parent)
  except OSError as error:
    raise OSError(f'{path} cannot be written ({error}): make room, or mend the disk') from error


def flat(config: Any, prefix: str = '') -> dict[str, Any]:
  """{'train.batch': 64, ...}: the config's numbers by their dotted keys."""
  if isinstance(config, ConfigDict):
    config = json.loads(config.to_json_best_effort())
  out = {}
  for key, value in config.items():
    if isinstance(value, dict):
      out.update(flat(value, f'{prefix}{key}.'))
    else:
      out[prefix + key] = value
  return out


def identity(config: ConfigDict) -> str:
  """What a run is called in its snapshots: a digest of all in its config that decides its numbers."""
  # Without what a key that is new says as runs did before it, so that old snapshots keep their name.
  kept = {key: value for key, value in flat(config).items()
          if (key not in beside.SINCE or beside.SINCE[key] != value)
          and not any(key == name or key.startswith(name + '.') for name in _free(config))}
  return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def restore(config: ConfigDict, recipe: build.Recipe, workdir: pathlib.Path, *,
            alone: bool = False) -> tuple[int, Any]:
  """(step, params): the parameters called config.sample.params, of the newest checkpoint.

  A std that was not kept in training is what --mode=reconstruct has made of it. Where config.sample
  has a guide, params are draws.Guided, unless they are asked for alone. Raises FileNotFoundError
  where there is none, ValueError where workdir is another config's; writes nothing.
  """
  check_config(config, workdir)
  guide = None if alone else guide_of(config, recipe)
  kept = config.sample.params in ('params', *build.ema_names(config))
  step, params = (_kept if kept else _reconstructed)(config, recipe, workdir)
  return step, _guided(params, guide)


def _kept(config, recipe, workdir):
  """(step, params) of an average that was kept in training, or of what it is an average of."""
  if not checkpoint.exists(workdir):
    raise FileNotFoundError(f'{workdir} holds no checkpoint: train first, with --mode=train and the '
                            'same --config and --workdir')
  # Nothing is made of what is only read.
  state = steps.create(recipe.init, recipe.optimizer, build.ema_names(config), config.seed,
                       mesh_of(config), rules=recipe.rules, histogram=recipe.histogram, abstract=True)
  with checkpoint.open_checkpoints(workdir, keep=None, run=identity(config)) as checkpoints:
    restored = checkpoints.restore(state)
  return int(restored.step), steps.parameters(restored, config.sample.params)


def guide_of(config: ConfigDict,
             recipe: build.Recipe) -> tuple[ConfigDict, build.Recipe, pathlib.Path] | None:
  """(config, recipe, folder) of the run that config.sample.guide names, or None where it names none.

  Reads no checkpoint. Raises ValueError where there is no run, or none that could guide this one.
  """
  guide = config.sample.get('guide')
  if not guide or not guide.workdir:
    return None
  folder = pathlib.Path(guide.workdir).expanduser()
  flag = f'config.sample.guide.workdir={guide.workdir!r}'
  if not guide.params:
    raise ValueError(f"{flag} with config.sample.guide.params='': name the parameters to take of that "
                     "run, 'params', an average that it keeps, or one that --mode=reconstruct made")
  other = beside.config_of(folder, flag)
  # It is not guided itself.
  other.sample = ConfigDict(other.sample.to_dict() | dict(
      guide=dict(workdir='', params=''), params=guide.params, scale=1.0))
  theirs = beside.recipe_of(other, flag, config, recipe)
  if other.data.num_classes not in (0, config.data.num_classes):
    raise ValueError(f'{flag}: it has {other.data.num_classes} classes, --workdir '
                     f'{config.data.num_classes}: give one with as many, or with none')
  return other, theirs, folder


def _guided(params, guide):
  if guide is None:
    return params
  config, recipe, folder = guide
  network = recipe.network(restore(config, recipe, folder)[1])
  if not config.data.num_classes:
    network = Partial(draws.classless, network=network)
  return draws.Guided(params, network)


def reconstructed(config: ConfigDict, recipe: build.Recipe,
                  workdir: pathlib.Path) -> tuple[int, Any]:
  """(step, params) that --mode=reconstruct made for the std config.sample.params.

  Guided as `restore` says. Raises FileNotFoundError where it made none, ValueError where they are
  damaged or another run's.
  """
  guide = guide_of(config, recipe)
  step, params = _reconstructed(config, recipe, workdir)
  return step, _guided(params, guide)


def average_like(recipe: build.Recipe) -> Any:
  """The shapes and dtypes of an average of the parameters."""
  return jax.eval_shape(lambda key: ema.init(recipe.init(key), ['']), jax.random.key(0))['']


def _reconstructed(config, recipe, workdir):
  name, folder = config.sample.params, workdir / 'reconstructed' / config.sample.params
  if not snapshots.listed(folder):
    raise FileNotFoundError(f'{workdir} holds no average of std {name}: make it first, with '
                            f'--mode=reconstruct --std={name} and the same --config and --workdir')
  like = average_like(recipe)
  newest = snapshots.check(folder, like=like, run=identity(config))[-1]
  params = snapshots.placed(snapshots.read(newest.path, name, like), like,
                            sharding.of(like, recipe.rules, mesh_of(config)))
  return newest.examples // config.train.batch, params
