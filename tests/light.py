"""The library runs with the few packages that `pip install .` brings; run in an empty environment.

  make light
"""

from importlib import metadata

import jax
from jax import numpy as jnp

import eqflow
from eqflow import (
    couplings, densities, descent, ema, grids, likelihood, losses, outputs, processes, samplers)


def names_its_extra(extra, function, *given, **named):
  """Whether the call raises ImportError with the command that installs the extra."""
  try:
    function(*given, **named)
  except ImportError as error:
    return f"pip install -e '.[{extra}]'" in str(error)
  return False


def main():
  """Raises AssertionError for the first thing that needs another package."""
  installed = sorted({each.metadata['Name'] for each in metadata.distributions()})
  print(len(installed), 'packages:', *installed)
  assert len(installed) <= 12 and not {'flax', 'optax', 'absl-py'} & set(installed)

  keys = jax.random.split(jax.random.key(0), 4)
  z = jax.random.normal(keys[0], (4, 2))
  field = lambda z, t: z
  x = samplers.sample(samplers.euler(processes.linear, outputs.u), field, z, grids.uniform(8))
  assert jnp.allclose(x, z * (1 - 1 / 8)**8)
  x = descent.descend(descent.gradient_descent(step_size=0.5), field, z, num_steps=3)
  assert jnp.allclose(x, z / 8)
  loss, _ = losses.matching_loss(keys, field, x, process=processes.linear, output=outputs.u,
                                 density=densities.uniform)
  assert loss.shape == (4,) and ema.warmed(0.999, 0) < 0.999

  assert eqflow.samplers is samplers and 'oracles' in dir(eqflow)
  assert not hasattr(eqflow, 'nothing')
  adaptive = samplers.adaptive(processes.linear, outputs.u)
  assert names_its_extra('ode', samplers.sample, adaptive, field, z, [1.0, 0.0])
  assert names_its_extra('ode', likelihood.log_likelihood, field, z, keys=keys,
                         process=processes.linear, output=outputs.u)
  assert names_its_extra('ot', couplings.optimal_transport, keys, z)
  print('the library works without the extras')


if __name__ == '__main__':
  main()
