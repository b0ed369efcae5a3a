"""The diffusion transformer with adaLN-zero that DiT, SiT and EqM share.   [Peebles+ 2212.09748]

The order of channels follows the published checkpoints, so a converter only renames and transposes
parameters: qkv is (3, heads, width/heads), a patch is (row, column, channel), the modulations are
(shift, scale, gate) of attention, then of the MLP, and (shift, scale) of the last layer.
"""

from collections.abc import Callable
import functools
import math

from flax import linen as nn
import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from eqflow.models import embed
from eqflow.models.partitioning import EXAMPLES, FSDP, TENSOR, constrain

# The published sizes: DiT-XL/2 is XL with patches of 2x2.
SIZES = {
  'S':  dict(width=384,  depth=12, heads=6),
  'B':  dict(width=768,  depth=12, heads=12),
  'L':  dict(width=1024, depth=24, heads=16),
  'XL': dict(width=1152, depth=28, heads=16),
}


def patchify(z: Float[Array, 'b h w c'], patch: int) -> Float[Array, 'b n pc']:
  """[b, h, w, c] -> [b, (h/p) (w/p), p p c]: patches row by row, each as (row, column, channel).

  Raises ValueError unless p divides h and w.
  """
  b, h, w, c = z.shape
  if h % patch or w % patch:
    raise ValueError(f'an image of {h}x{w} is not divisible by patch={patch}: use a patch that '
                     'divides both sides')
  z = z.reshape(b, h // patch, patch, w // patch, patch, c)
  return z.swapaxes(2, 3).reshape(b, -1, patch * patch * c)


def unpatchify(x: Float[Array, 'b n pc'], patch: int, height: int,
               width: int) -> Float[Array, 'b h w c']:
  """[b, n, p p c] -> [b, height, width, c], the inverse of patchify."""
  x = x.reshape(len(x), height // patch, width // patch, patch, patch, -1)
  return x.swapaxes(2, 3).reshape(len(x), height, width, -1)


def normalize(x: Float[Array, '... d']) -> Float[Array, '... d']:
  """(x - mean)/sqrt(var + 1e-6) over the last axis; computed in float32 or wider, in the dtype of x."""
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  wide = wide - wide.mean(-1, keepdims=True)
  variance = jnp.square(wide).mean(-1, keepdims=True)
  return (wide * jax.lax.rsqrt(variance + 1e-6)).astype(x.dtype)


def gelu(x: Float[Array, '...']) -> Float[Array, '...']:
  """x/(1 + exp(a)) = x (1 - tanh(a/2))/2, a = -sqrt(8/pi) (x + 0.044715 x^3), in the dtype of x.

  The quotient is cheaper than tanh: XLA then runs small batches on one CPU thread.
  """
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  a = -math.sqrt(8 / math.pi) * wide * (1 + 0.044715 * jnp.square(wide))
  return _damped(wide, a).astype(x.dtype)


@jax.custom_jvp
def _damped(x, a):
  return x / (1 + jnp.exp(a))


# Where exp overflows, the quotient is 0, but automatic differentiation would give NaN.
_damped.defjvps(lambda dx, y, x, a: dx * _damped(jnp.ones_like(a), a),
                lambda da, y, x, a: -da * y * _damped(jnp.ones_like(a), -a))


def modulate(x: Float[Array, 'b n d'], shift: Float[Array, 'b 1 d'],
             scale: Float[Array, 'b 1 d']) -> Float[Array, 'b n d']:
  """(1 + scale) normalize(x) + shift."""
  return normalize(x) * (1 + scale) + shift


class Block(nn.Module):
  """x + gate attention(modulate(x)), then + gate mlp(modulate(x)).

  Both gates, shifts and scales are linear in the condition. The gates start at zero, so that the block
  starts as the identity (adaLN-zero).
  """
  heads: int
  mlp_ratio: float
  dtype: DTypeLike
  param_dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, 'b n d'], c: Float[Array, 'b 1 d']) -> Float[Array, 'b n d']:
    """Tokens x [b, n, d] and the condition c [b, 1, d], after its activation -> [b, n, d]."""
    d = x.shape[-1]
    dense = _dense(self.dtype, self.param_dtype)
    modulation = dense(6 * d, name='modulation', kernel_init=nn.initializers.zeros)(c)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(modulation, 6, axis=-1)

    qkv = dense(3 * d, name='qkv')(modulate(x, shift_a, scale_a))
    parts = jnp.unstack(qkv.reshape(*x.shape[:2], 3, self.heads, d // self.heads), axis=2)
    q, k, v = (constrain(part, EXAMPLES, None, TENSOR) for part in parts)
    attended = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
    x = x + gate_a * dense(d, name='attended')(attended)

    # hidden/d * d may be just below hidden in floating point, and must not round down.
    h = dense(int(self.mlp_ratio * d + 1e-6), name='up')(modulate(x, shift_m, scale_m))
    h = constrain(h, EXAMPLES, None, TENSOR)
    return constrain(x + gate_m * dense(d, name='down')(gelu(h)), EXAMPLES)


class DiT(nn.Module):
  """A transformer on patches: (z [b, h, w, c], c_noise [b], condition [b]) -> y like z.

  patch: side of a patch. depth: number of blocks.
  width: channels of a token, divisible by heads, and by 4 unless learned_positions.
  num_classes: 0 for a network without classes. Otherwise condition [b] is in [0, num_classes], and
    num_classes, like None, is the null label.
  learned_positions: learn the table of positions instead of using fixed sines and cosines.
  doubled: the last layer has 2c output channels and the network returns the first c, as in the
    published checkpoints; DiT learned a variance in the other c.
  final_scale: standard deviation of the last layer's initial weights. At 0 the network starts as zero;
    an energy needs a positive scale, since the gradient of its parameters would stay zero.
  dtype: of the computation and the result; parameters have param_dtype.
  remat: recompute the activations of each block in the backward pass, except those that remat_policy,
    one of jax.checkpoint_policies, saves.
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
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32
  remat: bool = False
  remat_policy: Callable | None = None

  RULES = (
      ('(qkv|up|noise/up)/kernel', P(FSDP, TENSOR)),
      ('(attended|down|noise/out)/kernel', P(TENSOR, FSDP)),
      ('(modulation|final_modulation|final)/kernel', P(FSDP)),
      ('(patch_embed/kernel|classes/table/embedding)', P(None, FSDP)),
      ('(qkv|up)/bias', P(TENSOR)),
  )

  @nn.compact
  def __call__(self, z: Float[Array, 'b h w c'], c_noise: Float[Array, 'b'],
               condition: Int[Array, 'b'] | None = None) -> Float[Array, 'b h w c']:
    """y [b, h, w, c], in `dtype`.

    Raises ValueError unless patch divides the image and heads the width, and for a condition if the
    network has no classes.
    """
    if self.width % self.heads:
      raise ValueError(f'width={self.width} is not divisible by heads={self.heads}: use a divisor')
    if int(self.mlp_ratio * self.width + 1e-6) < 1:
      raise ValueError(f'mlp_ratio={self.mlp_ratio} gives width={self.width} no hidden channel: '
                       'use a larger ratio')
    _, height, width, channels = z.shape
    dense = _dense(self.dtype, self.param_dtype)
    x = dense(self.width, name='patch_embed')(patchify(z, self.patch))
    x = x + self._positions(height // self.patch, width // self.patch)
    c = nn.silu(self._condition(c_noise, condition))[:, None]

    block = nn.remat(Block, policy=self.remat_policy) if self.remat else Block
    for i in range(self.depth):
      x = block(self.heads, self.mlp_ratio, self.dtype, self.param_dtype, name=f'block_{i}')(x, c)
    # Stored only if the caller requests this collection.
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

  def _condition(self, c_noise, condition):
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    rows = embed.class_rows(condition, self.num_classes, len(c_noise))
    c = embed.NoiseEmbed(self.width, name='noise', **dtypes)(c_noise)
    if self.num_classes:
      c = c + embed.ClassEmbed(self.num_classes, self.width, name='classes', **dtypes)(rows)
    return c


def _dense(dtype, param_dtype):
  return functools.partial(nn.Dense, kernel_init=nn.initializers.xavier_uniform(), dtype=dtype,
                           param_dtype=param_dtype)
