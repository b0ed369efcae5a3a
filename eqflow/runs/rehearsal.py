"""What a run does after its training, once and small before the first step."""

import jax
from jax import numpy as jnp
import numpy as np

from eqflow import arrays, oracles
from eqflow.config.errors import ConfigError, naming
from eqflow.config.rows import bind
from eqflow.config.sampling import Sampling
from eqflow.config.tables import OUTPUTS
from eqflow.evaluation import report
from eqflow.fields import Model
from eqflow.outputs import Output
from eqflow.runs import generate, second_run
from eqflow.runs.run import Run


def rehearse(run: Run) -> None:
  """Samples, draws and evaluates noise. Raises ConfigError for what would fail after the training.

  The network is only traced. The solver runs on the exact field of two records, and its samples must be
  finite; then the picture of a preview and the features of the evaluation are computed.
  """
  config, recipe = run.config, run.recipe
  keys, labels = arrays.example_keys(config.seed, np.arange(2, dtype=np.uint32)), np.zeros(2, np.int32)
  runs = filter(None, (run, second_run.guide_of(run)))
  shapes = [Model(each.recipe.model.network, jax.eval_shape(each.recipe.model.init, jax.random.key(0)))
            for each in runs]
  with naming('sample'):
    jax.eval_shape(recipe.sampling.generate, shapes, keys, labels)
  output = bind(OUTPUTS, config.output, 'output')
  noise = np.random.default_rng(config.seed).normal(size=(8, *config.data.shape)).astype(np.float32)
  exact = Model(lambda _: _exact(recipe.sampling, output, noise[:2] / 2), ())
  exacts = [exact] * len(shapes)
  x = jax.jit(lambda keys, labels: recipe.sampling.generate(exacts, keys, labels)[0])(keys, labels)
  if not np.isfinite(x).all():
    raise ConfigError('sample.solver', config.sample.solver.to_dict(),
                      'gives samples that are not finite, even for the exact field of two records',
                      'use smaller steps, or change config.sample.grid')
  with naming('data.shape', tuple(config.data.shape)):
    generate.picture(noise, np.zeros(8, np.int32), title='noise', names=generate.class_names(run))
    report.summary(np.clip(noise, -1, 1))


def _exact(sampling: Sampling, output: Output, data: np.ndarray):
  """The exact field of these records, as a network; a descent has no time, and gets t = 0.5."""
  def network(z, t, condition):
    t = jnp.full(t.shape, 0.5) if sampling.grid is None else t
    return oracles.finite(z, t, process=sampling.process, output=output, data=data)
  return network
