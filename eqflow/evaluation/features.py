"""x -> [n, d]: feature spaces in which samples and data are compared.

No network is pretrained. A distance is named after its feature space; compare it only with
distances in the same space, for the same number of records.
"""

from __future__ import annotations

import itertools

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Shaped
import numpy as np

from eqflow import arrays

MAX_PIXELS = 3072  # 32x32x3, with a covariance of 75 MB in float64
_BATCH = 256


def pixels(x: Shaped[Array | np.ndarray, 'n ...']) -> Float[np.ndarray, 'n _']:
  """x as vectors, [n, ...] -> [n, d], float32.

  Images [n, h, w, c] of more than 3,072 elements are average-pooled by the smallest power of two that
  leaves at most 3,072: 256x256x3 becomes 32x32x3, which loses finer detail. Where it does not divide a
  side, some cells are one pixel longer. Raises TypeError unless x is floating.
  """
  x = np.asarray(x)
  arrays.check_floating('x', x)
  if x.ndim == 4:
    x = _pool(x)
  return x.reshape(len(x), -1).astype(np.float32, copy=False)


def random_features(x: Shaped[Array | np.ndarray, 'n ...'], *, dim: int = 256,
                    seed: int = 0) -> Float[np.ndarray, 'n {dim}']:
  """phi(x) of a fixed random network, [n, h, w, c] or [n, d] -> [n, dim], float32.

  Images: three random 3x3 convolutions with GELU, averaged over each quarter of the image, so that
  features depend on texture and on layout. A convolution halves images with sides of at least 16.
  Vectors: two random dense layers with GELU. The weights are a function of seed, dim and the shape of
  x[0], equal on every machine. Raises TypeError unless x is floating, and ValueError for other ranks
  and for dim < 1.
  """
  x = np.asarray(x)
  arrays.check_floating('x', x)
  if x.ndim not in (2, 4) or dim < 1:
    raise ValueError(f'x has shape {x.shape} and dim={dim}: give images [n, h, w, c] or vectors '
                     '[n, d], and dim of at least 1')
  network, weights = (_convolve, _filters) if x.ndim == 4 else (_project, _matrices)
  weights = weights(x.shape[1:], dim, seed)
  out = np.empty((len(x), dim), np.float32)
  for start in range(0, len(x), _BATCH):
    block = x[start:start + _BATCH].astype(np.float32)
    # The last batch is padded with zeros: a single compilation serves every n.
    full = np.zeros((_BATCH, *x.shape[1:]), np.float32)
    full[:len(block)] = block
    out[start:start + _BATCH] = network(weights, full)[:len(block), :dim]
  return out


def _pool(x):
  """Means over cells: as few powers of two smaller as leave at most MAX_PIXELS elements."""
  height, width, channels = x.shape[1:]
  factor = 1
  while channels * (height // factor or 1) * (width // factor or 1) > MAX_PIXELS and (
      factor < max(height, width)):
    factor *= 2
  for axis, side in ((1, height), (2, width)):
    cells = side // factor or 1
    # Where the cells do not divide the side, some have one element more.
    starts = -(-np.arange(cells + 1) * side // cells)
    counts = np.diff(starts).astype(np.float32).reshape(-1, *[1] * (3 - axis))
    x = x if cells == side else np.add.reduceat(x, starts[:-1], axis, dtype=np.float32) / counts
  return x


def _uniform(rng, *shape):
  # He's variance 2 / fan_in. Uniform, since rng.random gives the same numbers on every machine.
  limit = np.sqrt(6 / np.prod(shape[:-1]))
  return (limit * (2 * rng.random(shape) - 1)).astype(np.float32)


def _filters(shape, dim, seed):
  rng = np.random.Generator(np.random.Philox(seed))
  cells = min(2, shape[0]) * min(2, shape[1])
  widths = (shape[2], 32, 64, -(-dim // cells))
  return [_uniform(rng, 3, 3, a, b) for a, b in itertools.pairwise(widths)]


def _matrices(shape, dim, seed):
  rng = np.random.Generator(np.random.Philox(seed))
  # A constant input is a bias; without it all kinks of the network would meet at the origin.
  return [_uniform(rng, a + 1, b) for a, b in ((shape[0], dim), (dim, dim))]


@jax.jit
def _convolve(weights, z):
  for w in weights:
    stride = 2 if min(z.shape[1:3]) >= 16 else 1
    # By default, accelerators round the factors to bfloat16 or TF32.
    z = jax.nn.gelu(jax.lax.conv_general_dilated(
      z, w, (stride, stride), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      precision=jax.lax.Precision.HIGHEST))
  rows, columns = (_quarters(side) for side in z.shape[1:3])
  pooled = jnp.einsum('gh,nhwc,kw->ngkc', rows, z, columns, precision='highest')
  return pooled.reshape(len(z), -1)


def _quarters(side):
  # [2, side], or [1, 1]: row g averages half g of a side, which may be odd.
  cell = np.arange(side) * min(2, side) // side
  member = cell == np.arange(min(2, side))[:, None]
  return (member / member.sum(1, keepdims=True)).astype(np.float32)


@jax.jit
def _project(weights, z):
  for w in weights:
    z = jax.nn.gelu(jnp.matmul(z, w[:-1], precision='highest') + w[-1])
  return z
