"""EDM2's network, configuration G: a U-Net that keeps magnitudes.   [Karras+ 2312.02696]

F of EDM's preconditioning, of scaled input and ln(sigma)/4: see `outputs.edm` and
`fields.conditioned`, which do what its paper's wrapper does. Weights are to be `magnitude.normalized`
at the start of every training step.

Blocks are called as in the published checkpoints, `enc_16x16_down`, and so tied to a size of images.
"""

import functools
from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Num

from eqflow import arrays
from eqflow.arrays import Number
from eqflow.models import embed, magnitude
from eqflow.models.partitioning import EXAMPLES, FSDP, TENSOR, constrain

# name: width, learning rate, dropout, examples in Mi. Batch 2,048; 512 is of latents 64x64x4, 64 of
# pixels 64x64x3.
PRESETS = {
    '512-xxs': dict(width=64,  rate=0.0170, dropout=0.0,  million=2048),
    '512-xs':  dict(width=128, rate=0.0120, dropout=0.0,  million=2048),
    '512-s':   dict(width=192, rate=0.0100, dropout=0.0,  million=2048),
    '512-m':   dict(width=256, rate=0.0090, dropout=0.10, million=2048),
    '512-l':   dict(width=320, rate=0.0080, dropout=0.10, million=1792),
    '512-xl':  dict(width=384, rate=0.0070, dropout=0.10, million=1280),
    '512-xxl': dict(width=448, rate=0.0065, dropout=0.10, million=896),
    '64-xs':   dict(width=128, rate=0.0120, dropout=0.0,  million=1024),
    '64-s':    dict(width=192, rate=0.0100, dropout=0.0,  million=1024),
    '64-m':    dict(width=256, rate=0.0090, dropout=0.10, million=2048),
    '64-l':    dict(width=320, rate=0.0080, dropout=0.10, million=1024),
    '64-xl':   dict(width=384, rate=0.0070, dropout=0.10, million=640),
}
# What the presets of a resolution share: the density of ln sigma, and updates before the rate decays.
RECIPES = {
    '512': dict(mean=-0.4, std=1.0, decay_batches=70_000),
    '64':  dict(mean=-0.8, std=1.6, decay_batches=35_000),
}


class Block(nn.Module):
  """x -> x + a little of what two convolutions and attention make of it, each sum keeping magnitude.

  An encoder's block normalizes its input at every pixel, a decoder's does not. `resampled` is 'down'
  or 'up' before anything else, or ''. Attention has width // head_width heads, of cosines.
  """
  width: int
  decoder: bool
  resampled: str = ''
  attention: bool = False
  head_width: int = 64
  taps: tuple = (1, 1)
  res_balance: Number = 0.3
  attn_balance: Number = 0.3
  clip: Number | None = 256
  dropout: Number = 0.0
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c'], embedding: Float[Array, 'b e'],
               keys: Array | None) -> Float[Array, 'b i j d']:
    """x [b, h, w, c] under the embedding [b, e] of noise and class; keys [b] of dropout, or None."""
    linear = functools.partial(magnitude.Linear, param_dtype=self.param_dtype)
    if self.resampled:
      x = magnitude.resample(x, up=self.resampled == 'up', taps=self.taps)
    skip = lambda x: x if x.shape[-1] == self.width else linear(self.width, 1, name='conv_skip')(x)
    if not self.decoder:
      x = magnitude.normalize(skip(x))

    y = linear(self.width, 3, name='conv_res0')(magnitude.silu(x))
    gain = self.param('emb_gain', nn.initializers.zeros, (), self.param_dtype)
    factor = linear(self.width, name='emb_linear')(embedding, gain) + 1
    y = magnitude.silu(y * factor.reshape(len(y), 1, 1, self.width).astype(y.dtype))
    y = linear(self.width, 3, name='conv_res1')(magnitude.dropout(y, self.dropout, keys))
    x = magnitude.lerp(skip(x) if self.decoder else x, y, self.res_balance)

    if self.attention:
      y = self._attended(x, linear)
      x = magnitude.lerp(x, linear(self.width, 1, name='attn_proj')(y), self.attn_balance)
    return x if self.clip is None else jnp.clip(x, -self.clip, self.clip)

  def _attended(self, x, linear):
    b, h, w, _ = x.shape
    heads = self.width // self.head_width
    qkv = linear(3 * self.width, 1, name='attn_qkv')(x)
    # Published channels are (head, channel, q k v), the last fastest.
    qkv = magnitude.normalize(qkv.reshape(b, h * w, heads, self.width // heads, 3), axis=-2)
    q, k, v = jnp.unstack(qkv, axis=-1)
    return jax.nn.dot_product_attention(q, k, v).reshape(x.shape)


class EDM2(nn.Module):
  """The U-Net: (z [b, h, w, c], label of noise [b], condition) -> F as z; exactly 0 at the start.

  width: channels of the first level; multipliers: of each level, sizes halving; blocks: of each level
    in the encoder, one more in the decoder.
  attention: the sizes that have it; head_width: channels of a head.
  num_classes: 0 for a network without classes, else condition is a class [b] in [0, num_classes],
    the last being no class (as None is), or weights of the classes [b, num_classes], of a class 1.
  noise_multiplier, embedding_multiplier: widths of the noise's features and of the embedding, in
    widths; the first and the largest multiplier if None.
  dropout: used where keys are given.
  dtype: of the images' path; the embedding's is float32, and so is the result. remat: activations of
    a block are computed again in the backward pass instead of kept, but for those that remat_policy,
    one of jax.checkpoint_policies, keeps.
  """
  width: int
  multipliers: tuple = (1, 2, 3, 4)
  blocks: int = 3
  attention: tuple = (16, 8)
  head_width: int = 64
  num_classes: int = 0
  dropout: Number = 0.0
  noise_multiplier: Number | None = None
  embedding_multiplier: Number | None = None
  label_balance: Number = 0.5
  concat_balance: Number = 0.5
  res_balance: Number = 0.3
  attn_balance: Number = 0.3
  clip: Number | None = 256
  resample_filter: tuple = (1, 1)
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  remat: bool = False
  remat_policy: Any = None

  # Filters stand along the last axis, what they sum over along the one before it.
  RULES = (
      ('(conv_res0|attn_qkv)/weight', P(None, None, FSDP, TENSOR)),
      ('(conv_res1|attn_proj)/weight', P(None, None, TENSOR, FSDP)),
      ('(emb_linear|emb_label|emb_noise)/weight', P(FSDP, TENSOR)),
      ('(conv_skip|enc_[^/]*_conv|out_conv)/weight', P(None, None, (FSDP, TENSOR))),
  )

  @nn.compact
  def __call__(self, z: Float[Array, 'b h w c'], label: Float[Array, 'b'],
               condition: Num[Array, 'b ...'] | None = None,
               keys: Array | None = None) -> Float[Array, 'b h w c']:
    """F [b, h, w, c]; keys [b] draw the dropout of training, None is evaluation.

    Raises ValueError where attention has no head, the image does not halve, or a condition is given
    to a network without classes.
    """
    if z.shape[1] != z.shape[2]:
      raise ValueError(f'an image of {z.shape[1]}x{z.shape[2]}: EDM2 takes square ones')
    embedding = self._embedding(label, condition)
    block = self._blocks(embedding, keys)
    # The constant channel stands for all biases.
    x = jnp.concatenate([z, jnp.ones_like(z[..., :1])], -1).astype(self.dtype)
    widths = [self.width * m for m in self.multipliers]
    size = lambda level: '{0}x{0}'.format(z.shape[1] >> level)

    x = magnitude.Linear(widths[0], 3, self.param_dtype, name=f'enc_{size(0)}_conv')(x)
    skips = [self._seen(f'enc_{size(0)}_conv', x)]
    for level, width in enumerate(widths):
      if level:
        x = block(x, f'enc_{size(level)}_down', x.shape[-1], resampled='down')
        skips.append(x)
      for i in range(self.blocks):
        x = block(x, f'enc_{size(level)}_block{i}', width)
        skips.append(x)
    self.sow('intermediates', 'activations', x)

    for level, width in reversed(list(enumerate(widths))):
      if level == len(widths) - 1:
        x = block(x, f'dec_{size(level)}_in0', width, attention=True)
        x = block(x, f'dec_{size(level)}_in1', width, attention=False)
      else:
        x = block(x, f'dec_{size(level)}_up', x.shape[-1], resampled='up')
      for i in range(self.blocks + 1):
        x = magnitude.cat(x, skips.pop(), self.concat_balance)
        x = block(x, f'dec_{size(level)}_block{i}', width)

    gain = self.param('out_gain', nn.initializers.zeros, (), self.param_dtype)
    made = magnitude.Linear(z.shape[-1], 3, self.param_dtype, name='out_conv')(x, gain)
    return self._seen('out_conv', made).astype(jnp.promote_types(self.dtype, jnp.float32))

  def _blocks(self, embedding, keys):
    """(x, name, width, ...) -> what that block makes of x: what all blocks share is bound."""
    make = nn.remat(Block, policy=self.remat_policy) if self.remat else Block
    count = 0

    def block(x, name, width, *, resampled='', attention=None):
      nonlocal count
      side = x.shape[1] // 2 if resampled == 'down' else x.shape[1]
      if attention is None:
        attention = not resampled and side in self.attention
      heads = width // self.head_width
      if attention and (not heads or width % heads):
        raise ValueError(f'{name} has {width} channels, of which attention cannot make heads of '
                         f'head_width={self.head_width}: choose a head_width that divides them, or a '
                         'width that is a multiple of it')
      own = None if keys is None else arrays.fold_number(keys, count)
      count += 1
      x = make(width, name.startswith('dec'), resampled, attention, self.head_width,
               tuple(self.resample_filter), self.res_balance, self.attn_balance, self.clip,
               self.dropout, self.param_dtype, name=name)(x, embedding, own)
      x = constrain(x, EXAMPLES)
      return self._seen(name, x)

    return block

  def _embedding(self, label, condition):
    first = self.multipliers[0] if self.noise_multiplier is None else self.noise_multiplier
    last = (max(self.multipliers) if self.embedding_multiplier is None
            else self.embedding_multiplier)
    width = int(self.width * last)
    linear = functools.partial(magnitude.Linear, width, param_dtype=self.param_dtype)
    features = magnitude.Fourier(int(self.width * first), name='emb_fourier')(label)
    x = self._seen('emb_noise', linear(name='emb_noise')(self._seen('emb_fourier', features)))
    vectors = self._vectors(condition, len(label))
    if self.num_classes:
      # The root makes a class a vector of unit RMS.
      made = linear(name='emb_label')(vectors * self.num_classes**0.5)
      x = magnitude.lerp(x, self._seen('emb_label', made), self.label_balance)
    return constrain(magnitude.silu(x), EXAMPLES)

  def _vectors(self, condition, batch):
    if condition is not None and condition.ndim == 2:
      if not self.num_classes:
        raise ValueError(f'a condition of shape {condition.shape} to a network without classes: give '
                         'none, or a network with num_classes')
      return condition
    # The row beyond the last class is one of zeros.
    return jax.nn.one_hot(embed.class_rows(condition, self.num_classes, batch), self.num_classes)

  def _seen(self, name, x):
    # Kept only where the caller asks for the collection.
    self.sow('intermediates', f'after_{name}', x)
    return x


def preset(name: str, **options: Any) -> EDM2:
  """The published network of that name, '512-xxs' to '512-xxl' or '64-xs' to '64-xl', without classes
  unless num_classes is given. Raises ValueError for a name that is none."""
  if name not in PRESETS:
    raise ValueError(f'preset({name!r}): choose from {", ".join(PRESETS)}')
  row = PRESETS[name]
  return EDM2(**dict(width=row['width'], dropout=row['dropout']) | options)
