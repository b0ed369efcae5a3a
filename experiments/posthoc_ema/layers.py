"""RMS of the outputs of EDM2's layers for N(0, 1) inputs: primitives, then blocks of a network.

  python -m experiments.posthoc_ema.layers

Primitives should give 1. Whole blocks are below 1 by design: zeros surround the image, and attention
and down-sampling average values.
"""

import argparse

import jax
from jax import numpy as jnp
import numpy as np

from eqflow.models import edm2, magnitude
from experiments.posthoc_ema.magnitudes import rms

NETWORK = edm2.EDM2(width=64, multipliers=(1, 2), blocks=1, attention=(16,), num_classes=10)


def primitives() -> dict[str, jax.Array]:
  """{primitive: RMS of its output for N(0, 1) input}."""
  x, y = jax.random.normal(jax.random.key(0), (2, 64, 32, 32, 64))
  def linear(kernel, given):
    return magnitude.Linear(64, kernel).init_with_output(jax.random.key(1), given)[0]
  fourier, _ = magnitude.Fourier(4_096).init_with_output(
      jax.random.key(1), jax.random.normal(jax.random.key(2), (64,)))
  return {
      '1x1 convolution': rms(linear(1, x)),
      '3x3 convolution, away from the border': rms(linear(3, x)[:, 1:-1, 1:-1]),
      '3x3 convolution, with the border': rms(linear(3, x)),
      'linear': rms(linear(0, x[:, 0, 0])), 'silu': rms(magnitude.silu(x)),
      'lerp with weight .3': rms(magnitude.lerp(x, y, 0.3)),
      'concatenation of 64 and 16 channels': rms(magnitude.cat(x, y[..., :16])),
      'Fourier features': rms(fourier), 'pixel norm of 3 x': rms(magnitude.normalize(3 * x)),
  }


def blocks() -> dict[str, jax.Array]:
  """{layer of an untrained network: RMS of its output for N(0, 1) images}."""
  z, c_noise = jax.random.normal(jax.random.key(0), (16, 32, 32, 3)), jnp.linspace(-1.5, 1, 16)
  given = z, c_noise, jnp.arange(16) % 10
  params = jax.jit(NETWORK.init)(jax.random.key(1), *given)['params']
  apply = jax.jit(lambda params: NETWORK.apply({'params': params}, *given, mutable=['intermediates']))
  _, kept = apply(params)
  return {name.removeprefix('after_'): rms(value[0])
          for name, value in kept['intermediates'].items() if name.startswith('after_')}


def main():
  argparse.ArgumentParser(description=__doc__.partition('\n')[0]).parse_args()
  for title, found in (('primitive', primitives()), ('layer of a network', blocks())):
    print(f'\n| {title} | RMS |\n|---|---|')
    for name, value in found.items():
      print(f'| {name} | {value:.3f} |')
  print(f'\nmedian of the blocks {np.median([v for k, v in found.items() if "block" in k]):.3f}')


if __name__ == '__main__':
  main()
