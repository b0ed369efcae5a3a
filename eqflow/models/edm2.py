"""EDM2's network, configuration G: a magnitude-preserving U-Net.   [Karras+ 2312.02696]

It computes F of EDM's preconditioning from the scaled input and ln(sigma)/4; `outputs.edm` and
`fields.conditioned` do the work of the paper's wrapper. Call `magnitude.normalized` on the params at
the start of every training step.

Blocks have the names of the published checkpoints, such as `enc_16x16_down`; these contain the size
of the image, so params fit one image size only.
"""

from collections.abc import Callable
import functools

from flax import linen as nn
import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from eqflow import arrays
from eqflow.arrays import Number
from eqflow.models import embed, magnitude
from eqflow.models.partitioning import EXAMPLES, FSDP, TENSOR, constrain

# name: width, learning rate, dropout, examples in Mi (2^20), at batch 2,048. The presets 512 are for
# latents of 64x64x4, the presets 64 for pixels of 64x64x3.
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
# Common to the presets of a resolution: the density of ln sigma, and the updates before the learning
# rate decays.
RECIPES = {
    '512': dict(mean=-0.4, std=1.0, decay_batches=70_000),
    '64':  dict(mean=-0.8, std=1.6, decay_batches=35_000),
}


class Block(nn.Module):
  """x -> lerp(x, convolutions(x)), then lerp(x, attention(x)): a magnitude-preserving residual block.

  A block of the encoder normalizes its input at every pixel; a block of the decoder does not.
  `resampled` is 'down' or 'up' for a block that resamples its input first, otherwise ''. Attention has
  width // head_width heads and uses cosine similarity.
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
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c'], embedding: Float[Array, 'b e'],
               keys: Array | None) -> Float[Array, 'b i j d']:
    """x [b, h, w, c] and the embedding [b, e] of noise and class; dropout keys [b], or None."""
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
  """The U-Net: (z [b, h, w, c], c_noise [b], condition) -> F like z; starts as exactly 0.

  width: base width; a level has width * multiplier channels, and each level halves the image.
  blocks: number of blocks of a level in the encoder; the decoder has one more.
  attention: the image sizes with attention; head_width: channels of a head.
  num_classes: 0 for a network without classes. Otherwise condition is a class [b] in [0, num_classes],
    where num_classes, like None, is the null label; or class weights [b, num_classes], such as one-hot
    vectors.
  noise_multiplier, embedding_multiplier: channels of the noise features and of the embedding, in
    multiples of width; None: the first and the largest of `multipliers`.
  dropout: applied only when keys are passed.
  dtype: of the computation on images; the embedding and the result are float32.
  remat: recompute the activations of each block in the backward pass, except those that remat_policy,
    one of jax.checkpoint_policies, saves.
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
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32
  remat: bool = False
  remat_policy: Callable | None = None

  # The last axis of a weight is its output channels, the second last its input channels.
  RULES = (
      ('(conv_res0|attn_qkv)/weight', P(None, None, FSDP, TENSOR)),
      ('(conv_res1|attn_proj)/weight', P(None, None, TENSOR, FSDP)),
      ('(emb_linear|emb_label|emb_noise)/weight', P(FSDP, TENSOR)),
      ('(conv_skip|enc_[^/]*_conv|out_conv)/weight', P(None, None, (FSDP, TENSOR))),
  )

  @nn.compact
  def __call__(self, z: Float[Array, 'b h w c'], c_noise: Float[Array, 'b'],
               condition: Num[Array, 'b ...'] | None = None,
               keys: Array | None = None) -> Float[Array, 'b h w c']:
    """F [b, h, w, c]; keys [b] sample the dropout of training, None is evaluation.

    Raises ValueError for images that are not square or cannot be halved at each level, for a
    head_width that does not fit, and for a condition if the network has no classes.
    """
    if z.shape[1] != z.shape[2]:
      raise ValueError(f'an image of {z.shape[1]}x{z.shape[2]} is not square: EDM2 needs square images')
    embedding = self._embedding(c_noise, condition)
    block = self._blocks(embedding, keys)
    # A constant channel replaces all biases.
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
    """(x, name, width, ...) -> the output of this block; the options common to all blocks are bound."""
    make = nn.remat(Block, policy=self.remat_policy) if self.remat else Block
    count = 0

    def block(x, name, width, *, resampled='', attention=None):
      nonlocal count
      side = x.shape[1] // 2 if resampled == 'down' else x.shape[1]
      if attention is None:
        attention = not resampled and side in self.attention
      heads = width // self.head_width
      if attention and (not heads or width % heads):
        raise ValueError(f'head_width={self.head_width} does not fit the {width} channels of {name}, '
                         'which has attention: use a divisor of the channels')
      own = None if keys is None else arrays.fold_number(keys, count)
      count += 1
      x = make(width, name.startswith('dec'), resampled, attention, self.head_width,
               tuple(self.resample_filter), self.res_balance, self.attn_balance, self.clip,
               self.dropout, self.param_dtype, name=name)(x, embedding, own)
      x = constrain(x, EXAMPLES)
      return self._seen(name, x)

    return block

  def _embedding(self, c_noise, condition):
    first = self.multipliers[0] if self.noise_multiplier is None else self.noise_multiplier
    last = (max(self.multipliers) if self.embedding_multiplier is None
            else self.embedding_multiplier)
    width = int(self.width * last)
    linear = functools.partial(magnitude.Linear, width, param_dtype=self.param_dtype)
    features = magnitude.Fourier(int(self.width * first), name='emb_fourier')(c_noise)
    x = self._seen('emb_noise', linear(name='emb_noise')(self._seen('emb_fourier', features)))
    vectors = self._vectors(condition, len(c_noise))
    if self.num_classes:
      # sqrt(num_classes) scales a one-hot vector to unit RMS.
      made = linear(name='emb_label')(vectors * self.num_classes**0.5)
      x = magnitude.lerp(x, self._seen('emb_label', made), self.label_balance)
    return constrain(magnitude.silu(x), EXAMPLES)

  def _vectors(self, condition, batch):
    if condition is not None and condition.ndim == 2:
      if not self.num_classes:
        raise ValueError(f'num_classes=0, but the network received a condition of shape '
                         f'{condition.shape}: pass condition=None, or build it with num_classes > 0')
      return condition
    # The null label num_classes is a vector of zeros.
    return jax.nn.one_hot(embed.class_rows(condition, self.num_classes, batch), self.num_classes)

  def _seen(self, name, x):
    # Stored only if the caller requests this collection.
    self.sow('intermediates', f'after_{name}', x)
    return x
