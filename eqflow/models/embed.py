"""What a network is told besides the state: where a patch is, how noisy z is, and which class.

Fixed tables (positions, Fourier frequencies) live in params, so that a checkpoint is complete, and
are used under stop_gradient. Their names begin with `fixed_`; by that one rule `trainable` leaves
them out of counts, weight decay, optimizer state and averaging.
"""

import functools
from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int, PyTree
import numpy as np


def sinusoids(label: Float[Array, 'b'], dim: int = 256,
              max_period: float = 10000.0) -> Float[Array, 'b {dim}']:
  """[cos(w_k label), sin(w_k label)], w_k = max_period^(-k/(dim/2)): [b] -> [b, dim], cos first.

  In float32 or wider whatever the label's dtype: bfloat16 cannot tell 998 from 999. Raises
  ValueError where dim is odd.
  """
  if dim % 2:
    raise ValueError(f'dim={dim} must be even: half are cosines, half sines')
  label = label.astype(jnp.promote_types(label.dtype, jnp.float32))
  omega = max_period ** (-np.arange(dim // 2) / (dim // 2))
  angle = jnp.outer(label, jnp.asarray(omega, label.dtype))
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def sincos_positions(height: int, width: int, dim: int) -> Float[np.ndarray, 'n {dim}']:
  """[sin(w x), cos(w x), sin(w y), cos(w y)] for row y, column x: [height*width, dim], row by row.

  The column comes first, as in MAE and DiT; w_k = 10000^(-k/(dim/4)). Computed in float64, returned
  in float32. Raises ValueError where 4 does not divide dim.
  """
  if dim % 4:
    raise ValueError(f'dim={dim} must be divisible by 4: sine and cosine of two coordinates')
  omega = 10000.0 ** (-np.arange(dim // 4) / (dim // 4))
  y, x = np.divmod(np.arange(height * width), width)
  angles = np.outer(x, omega), np.outer(y, omega)
  table = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1)
  return table.astype(np.float32)


class NoiseEmbed(nn.Module):
  """W2 silu(W1 sinusoids(label)): the label of noise [b] -> [b, width], in `dtype`."""
  width: int
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, label: Float[Array, 'b']) -> Float[Array, 'b w']:
    """The embedding [b, width] of label [b]."""
    dense = functools.partial(nn.Dense, self.width, kernel_init=nn.initializers.normal(0.02),
                              dtype=self.dtype, param_dtype=self.param_dtype)
    return dense(name='out')(nn.silu(dense(name='up')(sinusoids(label))))


class ClassEmbed(nn.Module):
  """The row of each class in a table of num_classes + 1, the last for "no class", in `dtype`."""
  num_classes: int
  width: int
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, condition: Int[Array, 'b']) -> Float[Array, 'b w']:
    """[b] in [0, num_classes] -> [b, width]; NaN beyond the table, so that it is noticed."""
    return nn.Embed(self.num_classes + 1, self.width, name='table',
                    embedding_init=nn.initializers.normal(0.02), dtype=self.dtype,
                    param_dtype=self.param_dtype)(condition)


def class_rows(condition: Int[Array, 'b'] | None, num_classes: int, batch: int) -> Int[Array, 'b']:
  """The rows of the class table to read, [b]: the condition, or the null label where it is None.

  Raises ValueError where a condition is given to a network without classes.
  """
  if condition is None:
    return jnp.full((batch,), num_classes)
  if not num_classes:
    raise ValueError('a condition is given to a network with num_classes=0: pass condition=None, '
                     'or build the network with the number of classes')
  return condition


def is_fixed(path: tuple) -> bool:
  """Whether a name on this key path (of jax.tree_util) begins with `fixed_`."""
  names = jax.tree_util.keystr(path, simple=True, separator='/').split('/')
  return any(name.startswith('fixed_') for name in names)


def trainable(params: PyTree) -> PyTree[bool]:
  """True for every leaf that is learned, False for the fixed tables; structured as params."""
  return jax.tree_util.tree_map_with_path(lambda path, _: not is_fixed(path), params)


def count(params: PyTree) -> tuple[int, int]:
  """(total, trainable): the number of coordinates of all leaves, and of the learned ones."""
  sizes = jax.tree.map(np.size, params)
  learned = jax.tree.map(lambda n, keep: n * keep, sizes, trainable(params))
  return sum(jax.tree.leaves(sizes)), sum(jax.tree.leaves(learned))
