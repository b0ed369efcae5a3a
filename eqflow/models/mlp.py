"""A residual MLP for data without structure: points in the plane, latents, toy problems."""

import functools

from flax import linen as nn
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from eqflow.models import embed
from eqflow.models.partitioning import EXAMPLES, FSDP, constrain


class MLP(nn.Module):
  """h = W z + noise + class; h += W_i gelu(h); y = W gelu(h): (z [b, d], c_noise, condition) -> y.

  width, depth: of the hidden layers.
  num_classes: 0 for a network without classes. Otherwise condition [b] is in [0, num_classes], and
    num_classes, like None, is the null label.
  final_scale: standard deviation of the last layer's initial weights. At 0 the network starts as zero;
    an energy needs a positive scale, since the gradient of its parameters would stay zero.
  dtype: of the computation and the result; parameters have param_dtype.
  """
  width: int = 128
  depth: int = 3
  num_classes: int = 0
  final_scale: float = 0.0
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32

  RULES = (('kernel', P(None, FSDP)),)

  @nn.compact
  def __call__(self, z: Float[Array, 'b d'], c_noise: Float[Array, 'b'],
               condition: Int[Array, 'b'] | None = None) -> Float[Array, 'b d']:
    """y [b, d], in `dtype`, from z [b, d], c_noise [b] and condition [b] or None.

    Raises ValueError for a condition if the network has no classes.
    """
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    dense = functools.partial(nn.Dense, **dtypes)
    rows = embed.class_rows(condition, self.num_classes, len(z))
    # Frequencies from 10 down to 0.1 resolve times in [0, 1] as well as log-SNRs.
    noise = embed.sinusoids(10 * c_noise, 32, max_period=100.0)
    h = dense(self.width, name='z')(z) + dense(self.width, name='noise')(noise)
    if self.num_classes:
      h = h + embed.ClassEmbed(self.num_classes, self.width, name='classes', **dtypes)(rows)
    for i in range(self.depth):
      h = constrain(h + dense(self.width, name=f'layer_{i}')(nn.gelu(h)), EXAMPLES)
    # Stored only if the caller requests this collection.
    self.sow('intermediates', 'activations', h)
    return dense(z.shape[-1], name='final',
                 kernel_init=nn.initializers.normal(self.final_scale))(nn.gelu(h))
