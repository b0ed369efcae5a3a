"""A residual MLP for data without structure: points in the plane, latents, toy problems."""

import functools
from typing import Any

from flax import linen as nn
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from eqflow.models import embed
from eqflow.models.partitioning import EXAMPLES, FSDP, constrain


class MLP(nn.Module):
  """h = W z + noise + class; h += W_i gelu(h); y = W gelu(h): (z [b, d], label, condition) -> y.

  width, depth: of the hidden layers. num_classes: 0 for a network without classes, else condition
    is in [0, num_classes], the last being the null label, which None stands for.
  final_scale: standard deviation of the last layer at the start. At 0 the network starts as zero;
    an energy needs more, since its gradient would then stay zero.
  dtype: of the computation and of the result; params are kept in param_dtype.
  """
  width: int = 128
  depth: int = 3
  num_classes: int = 0
  final_scale: float = 0.0
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  RULES = (('kernel', P(None, FSDP)),)

  @nn.compact
  def __call__(self, z: Float[Array, 'b d'], label: Float[Array, 'b'],
               condition: Int[Array, 'b'] | None = None) -> Float[Array, 'b d']:
    """y [b, d], in `dtype`, of z [b, d], the label of noise [b] and condition [b] or None.

    Raises ValueError where a condition is given to a network without classes.
    """
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    dense = functools.partial(nn.Dense, **dtypes)
    rows = embed.class_rows(condition, self.num_classes, len(z))
    # Frequencies from 10 down to 0.1: times in [0, 1] and log-SNRs are both told apart.
    noise = embed.sinusoids(10 * label, 32, max_period=100.0)
    h = dense(self.width, name='z')(z) + dense(self.width, name='noise')(noise)
    if self.num_classes:
      h = h + embed.ClassEmbed(self.num_classes, self.width, name='classes', **dtypes)(rows)
    for i in range(self.depth):
      h = constrain(h + dense(self.width, name=f'layer_{i}')(nn.gelu(h)), EXAMPLES)
    # Kept only where the caller asks for the collection.
    self.sow('intermediates', 'activations', h)
    return dense(z.shape[-1], name='final',
                 kernel_init=nn.initializers.normal(self.final_scale))(nn.gelu(h))
