"""Magnitude-preserving layers: unit RMS in, unit RMS out.   [Karras+ 2312.02696]

The layers have no biases and no learned norms. A parameter named `weight` is used at unit RMS for each
output filter (the last axis), so it sets directions; a few scalar gains set magnitudes. `normalized`
changes only parameters of this name.
"""

from collections.abc import Sequence
import math

from flax import linen as nn
import jax
from jax import numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, PyTree

from eqflow.arrays import Number


def normalize(x: Float[Array, '...'], axis: int | Sequence[int] = -1,
              eps: float = 1e-4) -> Float[Array, '...']:
  """x/(eps + rms(x)), with the RMS over axis; computed in float32 or wider, in the dtype of x."""
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  square = jnp.square(wide).mean(axis, keepdims=True)
  # sqrt has no finite derivative at 0; the derivative is defined as 0 there.
  rms = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
  return (wide / (eps + rms)).astype(x.dtype)


def normalized(params: PyTree) -> PyTree:
  """params with every `weight` at unit RMS per output filter: forced weight normalization.

  Apply it at the start of each training step, before the gradient: unnormalized weights would grow,
  and their relative updates would shrink. Layers normalize their weights again, so that gradients are
  orthogonal to each filter and EMAs need no normalization.
  """
  def leaf(path, a):
    if not _is_weight(path):
      return a
    return normalize(a, tuple(range(a.ndim - 1)))
  return jax.tree_util.tree_map_with_path(leaf, params)


def _is_weight(path):
  return jax.tree_util.keystr(path[-1:], simple=True) == 'weight'


def silu(x: Float[Array, '...']) -> Float[Array, '...']:
  """silu(x)/0.596, which has unit RMS for x ~ N(0, 1)."""
  return nn.silu(x) / 0.596


def lerp(a: Float[Array, '...'], b: Float[Array, '...'], t: Number = 0.5) -> Float[Array, '...']:
  """((1 - t) a + t b)/sqrt((1 - t)^2 + t^2): keeps unit RMS if a, b are uncorrelated."""
  return ((1 - t) * a + t * b) / math.hypot(1 - t, t)


def cat(a: Float[Array, '... m'], b: Float[Array, '... n'], t: Number = 0.5) -> Float[Array, '... k']:
  """[a (1 - t)/sqrt(m), b t/sqrt(n)] sqrt((m + n)/((1 - t)^2 + t^2)): b has weight t at any m, n."""
  m, n = a.shape[-1], b.shape[-1]
  scale = math.sqrt(m + n) / math.hypot(1 - t, t)
  return jnp.concatenate([a * (scale * (1 - t) / math.sqrt(m)), b * (scale * t / math.sqrt(n))], -1)


def resample(x: Float[Array, 'b h w c'], *, up: bool = False,
             taps: Sequence[Number] = (1, 1)) -> Float[Array, 'b i j c']:
  """x at half the size, or at twice the size if `up`, filtered by the outer product taps x taps.

  (1, 1) averages 2x2 pixels, or repeats each pixel four times. Raises ValueError for an odd number of
  taps, for taps that sum to 0, and for an odd side that is to be halved.
  """
  if len(taps) % 2 or not sum(taps):
    raise ValueError(f'resample_filter={tuple(taps)}: give an even number of taps with a nonzero sum')
  b, h, w, c = x.shape
  if not up and (h % 2 or w % 2):
    raise ValueError(f'an image of {h}x{w} has an odd side: give a size that is even at every level '
                     'except the last')
  if len(set(taps)) == 1 and len(taps) == 2:
    if up:
      return x.repeat(2, axis=1).repeat(2, axis=2)
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
  row = jnp.asarray(taps, x.dtype) / sum(taps)
  kernel = jnp.outer(row, row)
  pad = (len(taps) - 1) // 2
  if up:
    # The transpose of downsampling: zeros between pixels, mirrored filter.
    kernel, pad, strides, dilation = 4 * kernel[::-1, ::-1], len(taps) - 1 - pad, (1, 1), (2, 2)
  else:
    strides, dilation = (2, 2), (1, 1)
  return jax.lax.conv_general_dilated(
      x, jnp.tile(kernel[:, :, None, None], (1, 1, 1, c)), strides, [(pad, pad)] * 2,
      lhs_dilation=dilation, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=c)


def dropout(x: Float[Array, 'b ...'], rate: Number, keys: Array | None) -> Float[Array, 'b ...']:
  """x/(1 - rate) with probability 1 - rate, else 0, sampled with each example's key; x without keys."""
  if not rate or keys is None:
    return x
  kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
  return jnp.where(kept, x / (1 - rate), 0)


class Linear(nn.Module):
  """gain W x/sqrt(fan in), W's filters at unit RMS: a product, or a `kernel` x `kernel` convolution.

  Stride 1, zero padding. Weights start as N(0, 1) in param_dtype, are normalized in float32 or wider
  and applied in the dtype of x.
  """
  features: int
  kernel: int = 0
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'b ... c'], gain: ArrayLike = 1.0) -> Float[Array, 'b ... f']:
    """x [..., c] -> [..., features]; x is images [b, h, w, c] if kernel > 0."""
    side = (self.kernel,) * 2 if self.kernel else ()
    shape = (*side, x.shape[-1], self.features)
    weight = self.param('weight', nn.initializers.normal(1.0), shape, self.param_dtype)
    weight = weight.astype(jnp.promote_types(weight.dtype, jnp.float32))
    fan_in = math.prod(shape[:-1])
    # The gain of a checkpoint may be in half precision.
    gain = jnp.asarray(gain, weight.dtype) / math.sqrt(fan_in)
    weight = normalize(weight, tuple(range(len(shape) - 1))) * gain
    weight = weight.astype(x.dtype)
    if self.kernel in (0, 1):
      return x @ weight.reshape(shape[-2:])
    return jax.lax.conv_general_dilated(x, weight, (1, 1), 'SAME',
                                        dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


class Fourier(nn.Module):
  """sqrt(2) cos(2 pi (f c_noise + p)), f ~ N(0, 1), p ~ U(0, 1), fixed: [b] -> [b, features]."""
  features: int

  @nn.compact
  def __call__(self, c_noise: Float[Array, 'b']) -> Float[Array, 'b f']:
    """Float32 features [b, features] of c_noise [b], each with unit RMS over its phases."""
    shape, wide = (self.features,), jnp.promote_types(c_noise.dtype, jnp.float32)
    table = lambda name, draw: jax.lax.stop_gradient(
        self.param(name, lambda key: 2 * math.pi * draw(key, shape))).astype(wide)
    freqs = table('fixed_freqs', jax.random.normal)
    phases = table('fixed_phases', jax.random.uniform)
    return math.sqrt(2) * jnp.cos(jnp.outer(c_noise.astype(wide), freqs) + phases)


class LogVariance(nn.Module):
  """u(sigma): the log variance of a network's error at noise level sigma, linear in Fourier features.

  It is learned by the loss exp(-u) loss + u [Karras+ 2312.02696, section 2.1].
  """
  features: int = 128

  @nn.compact
  def __call__(self, c_noise: Float[Array, 'b']) -> Float[Array, 'b']:
    """u [b] from c_noise [b]."""
    return Linear(1, name='linear')(Fourier(self.features, name='fourier')(c_noise))[:, 0]
