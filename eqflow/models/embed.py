"""Embeddings of a network's inputs other than z: positions of patches, noise conditioning, classes.

Fixed tables (positions, Fourier frequencies) are part of params, so that a checkpoint is complete, and
are read under stop_gradient. Their names start with `fixed_`: `trainable` excludes these names from
counts, weight decay, optimizer state and EMAs.
"""

import functools

from flax import linen as nn
import jax
from jax import numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree
import numpy as np


def sinusoids(c_noise: Float[Array, 'b'], dim: int = 256,
              max_period: float = 10000.0) -> Float[Array, 'b {dim}']:
  """[cos(w_k c_noise), sin(w_k c_noise)], w_k = max_period^(-k/(dim/2)): [b] -> [b, dim], cos first.

  In float32 or wider for every dtype of c_noise, since bfloat16 rounds 998 and 999 to one number.
  Raises ValueError if dim is odd.
  """
  if dim % 2:
    raise ValueError(f'dim={dim} is odd: give an even number, half for cosines and half for sines')
  c_noise = c_noise.astype(jnp.promote_types(c_noise.dtype, jnp.float32))
  omega = max_period ** (-np.arange(dim // 2) / (dim // 2))
  angle = jnp.outer(c_noise, jnp.asarray(omega, c_noise.dtype))
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def sincos_positions(height: int, width: int, dim: int) -> Float[np.ndarray, 'n {dim}']:
  """[sin(w x), cos(w x), sin(w y), cos(w y)] for row y, column x: [height*width, dim], row by row.

  The column comes first, as in MAE and DiT; w_k = 10000^(-k/(dim/4)). Computed in float64, returned
  in float32. Raises ValueError if dim is not divisible by 4.
  """
  if dim % 4:
    raise ValueError(f'dim={dim} is not divisible by 4: a position has the sine and cosine of its '
                     'row and of its column')
  omega = 10000.0 ** (-np.arange(dim // 4) / (dim // 4))
  y, x = np.divmod(np.arange(height * width), width)
  angles = np.outer(x, omega), np.outer(y, omega)
  table = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1)
  return table.astype(np.float32)


class NoiseEmbed(nn.Module):
  """W2 silu(W1 sinusoids(c_noise)): noise conditioning [b] -> [b, width], in `dtype`."""
  width: int
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, c_noise: Float[Array, 'b']) -> Float[Array, 'b w']:
    """The embedding [b, width] of c_noise [b]."""
    dense = functools.partial(nn.Dense, self.width, kernel_init=nn.initializers.normal(0.02),
                              dtype=self.dtype, param_dtype=self.param_dtype)
    return dense(name='out')(nn.silu(dense(name='up')(sinusoids(c_noise))))


class ClassEmbed(nn.Module):
  """Learned table of num_classes + 1 rows; the last row is the null label. Returns `dtype`."""
  num_classes: int
  width: int
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, condition: Int[Array, 'b']) -> Float[Array, 'b w']:
    """condition [b] in [0, num_classes] -> [b, width]; NaN for classes outside the table."""
    return nn.Embed(self.num_classes + 1, self.width, name='table',
                    embedding_init=nn.initializers.normal(0.02), dtype=self.dtype,
                    param_dtype=self.param_dtype)(condition)


def class_rows(condition: Int[Array, 'b'] | None, num_classes: int, batch: int) -> Int[Array, 'b']:
  """Rows [b] of the class table: condition, or the null label num_classes if condition=None.

  Raises ValueError for a condition if the network has no classes.
  """
  if condition is None:
    return jnp.full((batch,), num_classes)
  if not num_classes:
    raise ValueError('num_classes=0, but the network received a condition: pass condition=None, or '
                     'build the network with num_classes > 0')
  return condition


def is_fixed(path: tuple) -> bool:
  """Whether a name on this key path (of jax.tree_util) starts with `fixed_`."""
  names = jax.tree_util.keystr(path, simple=True, separator='/').split('/')
  return any(name.startswith('fixed_') for name in names)


def trainable(params: PyTree) -> PyTree[bool]:
  """True for every learned leaf, False for the fixed tables; a tree with the structure of params."""
  return jax.tree_util.tree_map_with_path(lambda path, _: not is_fixed(path), params)


def count(params: PyTree) -> tuple[int, int]:
  """(total, trainable): the number of elements of all leaves, and of the learned leaves."""
  sizes = jax.tree.map(np.size, params)
  counted = jax.tree.map(lambda n, learned: n * learned, sizes, trainable(params))
  return sum(jax.tree.leaves(sizes)), sum(jax.tree.leaves(counted))
