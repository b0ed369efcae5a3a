"""The diffusion transformer with adaLN-zero that DiT, SiT and EqM share.   [Peebles+ 2212.09748]

Parameters and chunk orders follow the published checkpoints, so a converter only renames and
transposes: qkv is (3, heads, width/heads), a patch is (row, column, channel), the modulations are
(shift, scale, gate) of attention, then of the MLP, and (shift, scale) of the last layer.
"""

import functools
import math
from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from eqflow.models import embed
from eqflow.models.partitioning import EXAMPLES, FSDP, TENSOR, constrain

# The published sizes; a name such as 'XL/2' is one of them over the side of a patch.
SIZES = {
  'S':  dict(width=384,  depth=12, heads=6),
  'B':  dict(width=768,  depth=12, heads=12),
  'L':  dict(width=1024, depth=24, heads=16),
  'XL': dict(width=1152, depth=28, heads=16),
}


def dit(name: str, **options: Any) -> 'DiT':
  """The published network of that name, 'S/8' to 'XL/2', with the options of DiT.

  Raises ValueError where the name is not a size over a patch.
  """
  size, _, patch = name.partition('/')
  if size not in SIZES or not patch.isdecimal():
    raise ValueError(f'dit({name!r}): a name is one of {", ".join(SIZES)}, a slash and '
                     "the patch's side, such as 'XL/2'")
  return DiT(patch=int(patch), **SIZES[size], **options)


def patchify(z: Float[Array, 'b h w c'], patch: int) -> Float[Array, 'b n pc']:
  """[b, h, w, c] -> [b, (h/p) (w/p), p p c]: patches row by row, each as (row, column, channel).

  Raises ValueError where p does not divide h and w.
  """
  b, h, w, c = z.shape
  if h % patch or w % patch:
    raise ValueError(f'an image of {h}x{w} has no whole number of patches of {patch}x{patch}: '
                     f'both sides must be divisible by patch={patch}')
  z = z.reshape(b, h // patch, patch, w // patch, patch, c)
  return z.swapaxes(2, 3).reshape(b, -1, patch * patch * c)


def unpatchify(x: Float[Array, 'b n pc'], patch: int, height: int,
               width: int) -> Float[Array, 'b h w c']:
  """[b, n, p p c] -> [b, height, width, c], the inverse of patchify."""
  x = x.reshape(len(x), height // patch, width // patch, patch, patch, -1)
  return x.swapaxes(2, 3).reshape(len(x), height, width, -1)


def normalize(x: Float[Array, '... d']) -> Float[Array, '... d']:
  """(x - mean)/sqrt(var + 1e-6) over the last axis; in float32 or wider, then as x is typed."""
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  wide = wide - wide.mean(-1, keepdims=True)
  variance = jnp.square(wide).mean(-1, keepdims=True)
  return (wide * jax.lax.rsqrt(variance + 1e-6)).astype(x.dtype)


def gelu(x: Float[Array, '...']) -> Float[Array, '...']:
  """x/(1 + exp(a)) = x (1 - tanh(a/2))/2, a = -sqrt(8/pi) (x + 0.044715 x^3), typed as normalize is.

  The quotient is the cheaper form: CPUs then leave small batches to one thread.
  """
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  a = -math.sqrt(8 / math.pi) * wide * (1 + 0.044715 * jnp.square(wide))
  return _damped(wide, a).astype(x.dtype)


@jax.custom_jvp
def _damped(x, a):
  return x / (1 + jnp.exp(a))


# Where exp is infinite, its quotient is 0, but what it would be differentiated to is not a number.
_damped.defjvps(lambda dx, y, x, a: dx * _damped(jnp.ones_like(a), a),
                lambda da, y, x, a: -da * y * _damped(jnp.ones_like(a), -a))


def modulate(x: Float[Array, 'b n d'], shift: Float[Array, 'b 1 d'],
             scale: Float[Array, 'b 1 d']) -> Float[Array, 'b n d']:
  """(1 + scale) normalize(x) + shift."""
  return normalize(x) * (1 + scale) + shift


class Block(nn.Module):
  """x + gate attention(modulate(x)), then + gate mlp(modulate(x)); the condition sets all six.

  At the start the gates are zero and the block is the identity (adaLN-zero).
  """
  heads: int
  mlp_ratio: float
  dtype: Any
  param_dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'b n d'], c: Float[Array, 'b 1 d']) -> Float[Array, 'b n d']:
    """Tokens x [b, n, d] under the activated condition c [b, 1, d] -> [b, n, d]."""
    d = x.shape[-1]
    dense = _dense(self.dtype, self.param_dtype)
    modulation = dense(6 * d, name='modulation', kernel_init=nn.initializers.zeros)(c)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(modulation, 6, axis=-1)

    qkv = dense(3 * d, name='qkv')(modulate(x, shift_a, scale_a))
    parts = jnp.unstack(qkv.reshape(*x.shape[:2], 3, self.heads, d // self.heads), axis=2)
    q, k, v = (constrain(part, EXAMPLES, None, TENSOR) for part in parts)
    attended = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
    x = x + gate_a * dense(d, name='attended')(attended)

    # A ratio that was once hidden/d gives back hidden, from just below it too.
    h = dense(int(self.mlp_ratio * d + 1e-6), name='up')(modulate(x, shift_m, scale_m))
    h = constrain(h, EXAMPLES, None, TENSOR)
    return constrain(x + gate_m * dense(d, name='down')(gelu(h)), EXAMPLES)


class DiT(nn.Module):
  """A transformer on patches: (z [b, h, w, c], label of noise [b], condition [b]) -> y as z.

  patch: side of a patch; width: channels of a token, divisible by heads (and by 4, unless
    learned_positions); depth: blocks.
  num_classes: 0 for a network without classes, else condition is in [0, num_classes], the last
    being the null label, which None stands for.
  learned_positions: a trained table of positions instead of the fixed sines and cosines.
  doubled: the last layer makes 2c channels, of which the first c are returned, as in the
    published checkpoints, where a variance was once learned in the others.
  final_scale: standard deviation of the last layer at the start. At 0 the network starts as zero;
    an energy needs more, since its gradient would then stay zero.
  dtype: of the computation and of the result; params are kept in param_dtype.
  remat: activations of a block are computed again in the backward pass instead of kept, but for those
    that remat_policy, one of jax.checkpoint_policies, keeps.
  """
  patch: int
  width: int
  depth: int
  heads: int
  mlp_ratio: float = 4.0
  num_classes: int = 0
  learned_positions: bool = False
  doubled: bool = False
  final_scale: float = 0.0
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  remat: bool = False
  remat_policy: Any = None

  RULES = (
      ('(qkv|up|noise/up)/kernel', P(FSDP, TENSOR)),
      ('(attended|down|noise/out)/kernel', P(TENSOR, FSDP)),
      ('(modulation|final_modulation|final)/kernel', P(FSDP)),
      ('(patch_embed/kernel|classes/table/embedding)', P(None, FSDP)),
      ('(qkv|up)/bias', P(TENSOR)),
  )

  @nn.compact
  def __call__(self, z: Float[Array, 'b h w c'], label: Float[Array, 'b'],
               condition: Int[Array, 'b'] | None = None) -> Float[Array, 'b h w c']:
    """y [b, h, w, c], in `dtype`.

    Raises ValueError where patch does not divide the image or heads the width, and where a
    condition is given to a network without classes.
    """
    if self.width % self.heads:
      raise ValueError(f'width={self.width} is not divisible by heads={self.heads}')
    if int(self.mlp_ratio * self.width + 1e-6) < 1:
      raise ValueError(f'mlp_ratio={self.mlp_ratio} leaves no channel of width={self.width}')
    _, height, width, channels = z.shape
    dense = _dense(self.dtype, self.param_dtype)
    x = dense(self.width, name='patch_embed')(patchify(z, self.patch))
    x = x + self._positions(height // self.patch, width // self.patch)
    c = nn.silu(self._condition(label, condition))[:, None]

    block = nn.remat(Block, policy=self.remat_policy) if self.remat else Block
    for i in range(self.depth):
      x = block(self.heads, self.mlp_ratio, self.dtype, self.param_dtype, name=f'block_{i}')(x, c)
    # Kept only where the caller asks for the collection.
    self.sow('intermediates', 'activations', x)

    zeros, normal = nn.initializers.zeros, nn.initializers.normal(self.final_scale)
    modulation = dense(2 * self.width, name='final_modulation', kernel_init=zeros)(c)
    shift, scale = jnp.split(modulation, 2, axis=-1)
    made = self.patch**2 * channels * (2 if self.doubled else 1)
    y = dense(made, name='final', kernel_init=normal)(modulate(x, shift, scale))
    return unpatchify(y, self.patch, height, width)[..., :channels]

  def _positions(self, rows, columns):
    shape = rows * columns, self.width
    if self.learned_positions:
      table = self.param('positions', nn.initializers.normal(0.02), shape, self.param_dtype)
    else:
      table = self.param('fixed_positions', lambda _: jnp.asarray(
        embed.sincos_positions(rows, columns, self.width), self.param_dtype))
      table = jax.lax.stop_gradient(table)
    return table.astype(self.dtype)

  def _condition(self, label, condition):
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    rows = embed.class_rows(condition, self.num_classes, len(label))
    c = embed.NoiseEmbed(self.width, name='noise', **dtypes)(label)
    if self.num_classes:
      c = c + embed.ClassEmbed(self.num_classes, self.width, name='classes', **dtypes)(rows)
    return c


def _dense(dtype, param_dtype):
  return functools.partial(nn.Dense, kernel_init=nn.initializers.xavier_uniform(), dtype=dtype,
                           param_dtype=param_dtype)
