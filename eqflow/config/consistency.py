"""Every rule about two sections of a config: one row (broken, key, what is allowed, remedy).

A rule belongs to the function of the section that has its key: `_data` (and examples of `train`),
`_model` (and energy, dispersive loss), `_loss`, `_averages`, `_sampling`. What only training needs, on
its devices, belongs to `_training`. What needs the records belongs to `check_source`, or to
`check_evaluation`.
"""

from collections.abc import Iterator
import importlib.util
from typing import Any

import jax
from jax import numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from eqflow import blind_spots, ema, files
from eqflow.config import networks, objective
from eqflow.config.averages import Averages
from eqflow.config.errors import ConfigError, naming
from eqflow.config.networks import Architecture
from eqflow.config.sampling import Sampling, scale_of
from eqflow.config.tables import DESCENDED, DESCENTS, SOLVERS
from eqflow.data import records, sources
from eqflow.models import partitioning
from eqflow.outputs import Output
from eqflow.planning import machine
from eqflow.processes import Process
from eqflow.training import sharding

Rule = tuple[Any, str, str, str]
# With fewer records, a model can be trained, but not evaluated.
FEWEST = 8


def check(config: ConfigDict, model: Architecture, sampling: Sampling, output: Output) -> None:
  """Raises ConfigError if sections contradict each other, or a time is a blind spot."""
  for rules in (_data, _model, _loss, _averages, _sampling):
    _hold(config, rules(config))
  with naming('model'):
    jax.eval_shape(model.init, jax.random.key(0))
  _check_blind_spots(config, model, sampling, output)


def check_training(config: ConfigDict, model: Architecture, averages: Averages, mesh: Mesh) -> None:
  """Raises ConfigError for what cannot be trained, on these devices."""
  _hold(config, _training(config, model, averages, mesh))


def check_devices(config: ConfigDict, mesh: Mesh) -> None:
  """Raises ConfigError for a network that these devices cannot compute."""
  dtype, on_cpu = config.model.get('dtype'), mesh.devices.flat[0].platform == 'cpu'
  _hold(config, [(dtype == 'float16' and config.model.name != 'mlp' and on_cpu, 'model.dtype',
                  'is not supported by the compiler for CPUs', 'use --config.model.dtype=bfloat16')])


def check_source(config: ConfigDict, source: sources.Source) -> None:
  """Raises ConfigError if the data differ from config.data in shape, classes or labels."""
  data = config.data
  wrong = records.wrong_label(source) if data.num_classes else ''
  named = ', '.join(map(files.shown, source.classes[:20]))
  _hold(config, [
      (tuple(source.shape) != tuple(data.shape), 'data.shape',
       f'must be {tuple(source.shape)}, the shape of the records of {source.name}', ''),
      (data.num_classes not in (0, source.num_classes), 'data.num_classes',
       f'must be {source.num_classes}, the classes of {source.name}{named and ": "}{named}, or 0 for '
       'no labels', ''),
      (wrong, 'data.num_classes', f'needs a class for each record, but {wrong}',
       'use another config.data.split, or --config.data.num_classes=0 to train without labels')])


def check_evaluation(config: ConfigDict, source: sources.Source, mesh: Mesh) -> None:
  """Raises ConfigError if samples cannot be compared with these records, or drawn on these devices."""
  devices = sharding.parts(mesh)
  _hold(config, [
      (config.sample.batch % devices, *_undivided('sample.batch', config.sample.batch, devices)),
      (len(source) < FEWEST, 'evaluate.split',
       f'has {len(source)} records, but evaluation needs {FEWEST} or more', '')])


def check_pairs(config: ConfigDict, sampling: Sampling) -> None:
  """Raises ConfigError for a stochastic solver: a pair needs a sample that its noise determines."""
  _hold(config, [(sampling.solver.traits.stochastic, 'sample.solver.name',
                  'is stochastic, but the sample of a pair is a function of its noise',
                  'use --config.sample.solver="{\'name\': \'ddim\'}"')])


def check_detection(config: ConfigDict) -> None:
  """Raises ConfigError for a field that needs a time or is not small at data: it cannot be a score."""
  _hold(config, [
      (config.model.c_noise.name != 'none', 'model.c_noise.name',
       'needs the time of an input, which --mode=ood does not know',
       "use a model trained with 'none', such as configs/digits.py:eqm"),
      (config.output.name not in DESCENDED, 'output.name', 'is not small at data, as --mode=ood needs',
       f'use a model of one of {list(DESCENDED)}')])


def _undivided(key, batch, devices):
  return key, f'is not divisible by {devices} devices', f'use {-(-batch // devices) * devices}'


def _hold(config, rules):
  for broken, key, allowed, remedy in rules:
    if broken:
      value = config
      for name in key.split('.'):
        value = value[name]
      raise ConfigError(key, tuple(value) if isinstance(value, list) else value, allowed, remedy)


def _data(config: ConfigDict) -> Iterator[Rule]:
  data, train = config.data, config.train
  yield (data.flip and len(data.shape) != 3, 'data.flip',
         f'mirrors images, but config.data.shape={tuple(data.shape)}', 'use --config.data.flip=False')
  yield (data.flip and data.name == 'pairs', 'data.flip',
         "must be False with config.data.name='pairs': each example is paired with its noise", '')
  yield (train.num_examples + train.batch >= 2**32, 'train.num_examples',
         f'must be below 2**32 - config.train.batch={train.batch}: examples are counted in uint32', '')


def _model(config: ConfigDict) -> Iterator[Rule]:
  model, loss, energy = config.model, config.loss, config.energy.name
  shape, vectors = tuple(config.data.shape), model.name == 'mlp'
  dropout, dispersive = model.get('dropout', 0.0), loss.dispersive
  yield (len(shape) != (1 if vectors else 3), 'data.shape',
         f'does not fit config.model.name={model.name!r}, which takes '
         f'{"vectors of shape (d,)" if vectors else "images of shape (h, w, c)"}', '')
  if model.name.lower().startswith('edm2'):
    yield from _levels(config)
  elif not vectors:
    yield from _patches(config)
  yield (dropout and (energy != 'none' or dispersive), 'model.dropout',
         f'must be 0 with config.energy.name={energy!r} and config.loss.dispersive={dispersive}: '
         'neither an energy nor the dispersive loss supports dropout', 'use --config.model.dropout=0.0')
  yield (energy not in ('none', 'dot') and not model.get('final_scale', 0.0), 'energy.name',
         'cannot learn with config.model.final_scale=0.0: the gradient of |f|^2/2 is zero at f=0',
         'use --config.model.final_scale=0.02, or --config.energy.name=dot')
  yield (dispersive and energy != 'none', 'loss.dispersive',
         f'must be 0 with config.energy.name={energy!r}: the gradient of an energy has no activations',
         'use --config.loss.dispersive=0.0, or --config.energy.name=none')
  yield (model.dtype == 'float16' and not config.train.max_skipped, 'model.dtype',
         'needs config.train.max_skipped above 0: the loss scale adapts by skipping updates',
         'use --config.train.max_skipped=20, or --config.model.dtype=bfloat16')


def _installed(package):
  return importlib.util.find_spec(package) is not None


def _patches(config: ConfigDict) -> Iterator[Rule]:
  """DiT has a table of the positions of its patches."""
  height, width, _ = config.data.shape
  module = networks.flax_module(config.model, config.data.num_classes)
  size = 8 * module.width * height * width // module.patch**2
  yield (size > machine.host_memory(), 'data.shape',
         f'needs {size / 1e9:,.0f} GB for the positions of its patches', 'use smaller images')


def _levels(config: ConfigDict) -> Iterator[Rule]:
  """EDM2 halves an image between its levels."""
  size, model = config.data.shape[0], config.model
  halvings = len(model.get('multipliers', (1, 2, 3, 4))) - 1
  sizes = [size >> level for level in range(halvings + 1)]
  yield ('multipliers' in model and size % 2**halvings, 'model.multipliers',
         f'needs a size that halves {halvings} times, but config.data.shape={tuple(config.data.shape)}',
         'use fewer')
  yield ('attention' in model and not set(model.attention) <= set(sizes), 'model.attention',
         f'must be sizes of levels: some of {sizes}', '')


def _loss(config: ConfigDict) -> Iterator[Rule]:
  loss, density = config.loss, config.loss.density.name
  on_logsnr, adaptive = loss.weight.name == 'on_logsnr', density == 'adaptive'
  yield (adaptive and not on_logsnr, 'loss.weight.name',
         f'makes the objective depend on config.loss.density.name={density!r}',
         'use --config.loss.weight.name=on_logsnr')
  yield (adaptive and loss.at_data, 'loss.at_data',
         f'must be 0 with config.loss.density.name={density!r}, which never samples t=0', '')
  yield (on_logsnr and (loss.space or config.output.name) != 'eps', 'loss.space',
         "must be 'eps' with config.loss.weight.name='on_logsnr', which weights the error of eps",
         'use --config.loss.space=eps')
  yield (loss.coupling.name in ('optimal_transport', 'sinkhorn') and not _installed('ot'),
         'loss.coupling.name', 'needs the package POT', "run pip install -e '.[ot]'")
  yield (loss.coupling.name == 'pairs' and config.data.name != 'pairs', 'loss.coupling.name',
         f'needs data with their noise, but config.data.name={config.data.name!r}',
         'use --config.data.name=pairs')


def _averages(config: ConfigDict) -> Iterator[Rule]:
  section, chosen = config.ema, config.sample.params
  names = [*map(repr, section.decays), *map(repr, section.stds)]
  yield (len(set(names)) < len(names), 'ema.decays',
         f'and config.ema.stds={tuple(section.stds)} name an EMA twice', 'give each EMA once')
  yield (chosen not in ('params', *names) and not (section.stds and ema.is_std(chosen)),
         'sample.params', f'must be one of {["params", *names]}'
         + (', or a std made by --mode=reconstruct' if section.stds else ''), '')


def _sampling(config: ConfigDict) -> Iterator[Rule]:
  sample, classes, shape = config.sample, config.data.num_classes, tuple(config.data.shape)
  solver, c_noise, output = sample.solver.name, config.model.c_noise.name, config.output.name
  descends, guide, scale = solver in DESCENTS, sample.guide.workdir, scale_of(sample)
  yield (solver == 'adaptive' and not _installed('diffrax'), 'sample.solver.name',
         'needs the package diffrax', "run pip install -e '.[ode]'")
  yield (descends and c_noise != 'none', 'sample.solver.name',
         f'descends a field without time, but config.model.c_noise.name={c_noise!r}',
         f'train with --config.model.c_noise.name=none, or use one of {sorted(SOLVERS)}')
  yield (descends and output not in DESCENDED, 'sample.solver.name',
         f'needs a field that vanishes at data, but config.output.name={output!r}',
         f'train one of {list(DESCENDED)}, or use one of {sorted(SOLVERS)}')
  yield (not descends and sample.threshold, 'sample.threshold',
         f'needs a solver that descends: one of {sorted(DESCENTS)}',
         'use --config.sample.threshold=0.0')
  yield (isinstance(sample.scale, (tuple, list)) and len(sample.scale) != shape[-1], 'sample.scale',
         f'must be one number, or one for each channel of config.data.shape={shape}', '')
  yield (guide and not sample.guide.params, 'sample.guide.params', 'must name parameters of the guide',
         "use 'params', one of its EMAs, or a std made by --mode=reconstruct")
  yield (guide and scale == 1, 'sample.guide.workdir', 'has no effect at config.sample.scale=1',
         "use a scale above 1, or --config.sample.guide.workdir=''")
  yield (scale != 1 and not classes and not guide, 'sample.scale',
         'guides by class, but config.data.num_classes=0',
         'use --config.sample.scale=1.0, or set config.sample.guide.workdir')
  yield (scale != 1 and not guide and not config.train.drop_label, 'sample.scale',
         'needs a network that is trained without labels too, but config.train.drop_label=0.0',
         'train with --config.train.drop_label=0.1, or set config.sample.guide.workdir to a weaker run')
  yield (descends and sample.interval.name != 'always', 'sample.interval.name',
         f'is an interval of times, but config.sample.solver.name={solver!r} has none',
         'use --config.sample.interval.name=always')


def _training(config: ConfigDict, model: Architecture, averages: Averages,
              mesh: Mesh) -> Iterator[Rule]:
  train, names = config.train, ['params', *averages.names]
  devices, accumulate = sharding.parts(mesh), config.train.accumulate
  yield (config.sample.params not in names, 'sample.params',
         'is made by --mode=reconstruct, after training', f'train with one of {names}')
  yield (config.ema.snapshot_examples and not config.ema.stds, 'ema.snapshot_examples',
         'needs power averages, but config.ema.stds is empty', "use --config.ema.stds='(0.05, 0.1)'")
  yield (train.batch % (devices * accumulate), 'train.batch',
         f'is not divisible by {devices} devices x config.train.accumulate={accumulate}',
         f'use {-(-train.batch // (devices * accumulate)) * devices * accumulate}')
  yield config.sample.batch % devices, *_undivided('sample.batch', config.sample.batch, devices)
  sharded = {axis for _, spec in model.rules for axes in spec if axes
             for axis in np.atleast_1d(axes)}
  yield (mesh.shape[partitioning.TENSOR] > 1 and partitioning.TENSOR not in sharded, 'mesh.tensor',
         'shards no layer of this network', 'use --config.mesh.tensor=1')
  with naming('mesh'):
    _, readers = sharding.own_rows(mesh)
  yield (config.loss.dispersive and accumulate > 1 and readers > 1, 'loss.dispersive',
         f'couples the examples of a microbatch, which differ between 1 and {readers} processes',
         'use --config.train.accumulate=1')


def _check_blind_spots(config, model, sampling, output):
  """Raises ConfigError if a time of training or sampling is a blind spot."""
  process, c_noise = sampling.process, model.c_noise
  if sampling.grid is not None:
    with naming('sample.grid'):
      blind_spots.check_grid(sampling.grid, process=process, output=output)
      blind_spots.needs_conditioning(sampling.grid, process=process, c_noise=c_noise)
      _check_ends(sampling.grid, process)
    with naming('sample.solver'):
      sampling.solver.check(sampling.grid)
  adaptive = objective.density_of(config, process)
  density = adaptive.density(adaptive.start)
  with naming('loss'):
    blind_spots.check_training(
        density, process=process, output=output, c_noise=c_noise,
        space=objective.space_of(config), weight=objective.weight_of(config, density))


def _check_ends(grid, process: Process) -> None:
  """Raises ValueError unless a grid falls from noise to data."""
  first, last = (process(jnp.float32(t)) for t in (grid[0], grid[-1]))
  if grid[0] <= grid[-1] or not last.eps <= 0.1 * last.x:
    raise ValueError(f'times from {grid[0]:.4g} to {grid[-1]:.4g} do not end at data; start above '
                     'the end, and end at a time with sigma at most alpha / 10, such as 0')
  if not first.eps > first.x:
    raise ValueError(f'times from {grid[0]:.4g} to {grid[-1]:.4g} do not start at noise: at the first, '
                     f'sigma is {float(first.eps):.4g} and alpha {float(first.x):.4g}')
