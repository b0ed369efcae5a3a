"""Guidance: several predictors, or one under several conditions, extrapolated into one predictor.

Every function here but `rescaled` returns a Predict, (z, t) -> y, as a Partial: an argument of jit.

A scale means the same in all of them: a number for all examples, [b] for one number per example, or an
array with as many axes as y that broadcasts to y, such as [1, ..., c] for one number per channel:
`scale=jnp.array([[[[3.0, 3.0, 3.0, 1.0]]]])` for images of four channels. Predictions are combined in
float32 or wider, so that scaling float16 or bfloat16 never overflows on the way, and the result has
their dtype; the type of a scale changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from jaxtyping import ArrayLike
import numpy as np

from eqflow import arrays
from eqflow.arrays import Data, Number
from eqflow.fields import Network, Predict, bind
from eqflow.processes import Process


def guided(network: Network, condition: Any, null: Any, *, scale: ArrayLike,
           rescale: ArrayLike = 0.0) -> Predict:
  """y_null + scale (y_condition - y_null), both branches in one call: classifier-free guidance.

  condition and null are pytrees with a leading [b]. The number 1 as scale turns guidance off and skips
  the null branch. rescale is the phi of `rescaled`, towards y_condition.
  """
  arrays.check_functions(network=network)
  scale = _checked(scale)
  if arrays.is_number(scale, 1):
    return bind(network, condition)
  arrays.check_alike('null', null, 'condition', condition)
  return arrays.pytree(Partial(_guided, network=network, condition=condition, null=null,
                               scale=scale, rescale=_phi(rescale)))


def _guided(z, t, *, network, condition, null, scale, rescale):
  arrays.check_rows('condition', condition, z)
  y = network(_pair(z, z), _pair(t, t), _pair(condition, null))
  pairs = jax.tree.map(lambda a: a.reshape((-1, 2) + a.shape[1:]), y)
  toward, away = (jax.tree.map(lambda a: a[:, branch], pairs) for branch in (0, 1))
  return _rescaled(_extrapolated(away, [toward], [scale]), toward, rescale)


def _pair(first, second):
  # Stacked after the batch axis, so that each device's shard has both branches of its examples.
  def leaf(a, b):
    return jnp.stack([a, b], axis=1).reshape((-1,) + a.shape[1:])
  return jax.tree.map(leaf, first, second)


def composed(base: Predict, predicts: Sequence[Predict], scales: Sequence[ArrayLike]) -> Predict:
  """y_0 + sum_i scale_i (y_i - y_0): several conditions or networks at once [Liu+ 2206.01714].

  base gives y_0, usually under the null condition. The weights of all y, y_0 included, sum to 1, so a
  composition of eps, v or x is again such an output. Where the scales are numbers and sum to exactly 1,
  base is not evaluated. Raises ValueError unless there is one scale for each predictor.
  """
  _check_scales(predicts, scales)
  arrays.check_functions(base=base)
  return _composition(base, predicts, scales, None)


def autoguided(predict: Predict, weak: Predict, *, scale: ArrayLike,
               rescale: ArrayLike = 0.0) -> Predict:
  """y_weak + scale (y - y_weak): guidance by a worse network of the same condition [2406.02507].

  weak is smaller or less trained. A scale of 1 evaluates predict alone. rescale is the phi of
  `rescaled`, towards y.
  """
  arrays.check_functions(predict=predict, weak=weak)
  return _composition(weak, [predict], [scale], _phi(rescale))


def added(predicts: Sequence[Predict], scales: Sequence[ArrayLike]) -> Predict:
  """sum_i scale_i y_i: fields of several conditions or networks, added.

  For descents: the energies of the fields add. If the scales sum to k, steps are k times as long where
  the fields agree, and the norm that stops a descent is k times as large. For integration over times
  let the scales sum to 1. Raises ValueError unless there is one scale for each predictor.
  """
  _check_scales(predicts, scales)
  return arrays.pytree(Partial(_added, predicts=list(predicts), scales=list(map(_checked, scales))))


def _added(z, t, *, predicts, scales):
  ys = [predict(z, t) for predict in predicts]
  for y in ys:
    arrays.check_alike('predict returned', y, 'z', z)
  return jax.tree.map(lambda *ys: sum(map(_scaled, scales, ys)).astype(ys[0].dtype), *ys)


def _check_scales(predicts, scales):
  if not predicts or len(predicts) != len(scales):
    raise ValueError(f'{len(scales)} scales for {len(predicts)} predictors: give one scale for each')
  for predict in predicts:
    arrays.check_functions(predict=predict)


def _composition(base, predicts, scales, rescale):
  scales = list(map(_checked, scales))
  if not arrays.is_traced(scales) and not any(map(np.ndim, scales)) and sum(map(float, scales)) == 1:
    base = None
  return arrays.pytree(Partial(_composed, base=base, predicts=list(predicts),
                               scales=scales, rescale=rescale))


def _composed(z, t, *, base, predicts, scales, rescale):
  ys = [predict(z, t) for predict in predicts]
  away = jax.tree.map(jnp.zeros_like, ys[0]) if base is None else base(z, t)
  return _rescaled(_extrapolated(away, ys, scales), ys[0], rescale)


def _extrapolated(away, ys, scales):
  for y in ys:
    arrays.check_alike('a prediction', y, 'another prediction', away)

  def leaf(away, *ys):
    start = _wide(away)
    return (start + sum(_scaled(c, _wide(y) - start) for c, y in zip(scales, ys))).astype(away.dtype)

  return jax.tree.map(leaf, away, *ys)


def _wide(a):
  return a.astype(jnp.promote_types(a.dtype, jnp.float32))


def _scaled(scale, y):
  """scale y in float32 or wider, by the one meaning of a scale."""
  y = _wide(y)
  scale = jnp.asarray(scale, y.dtype)
  per_example = scale.ndim == 1 and len(scale) in (1, len(y))
  alike = scale.ndim == y.ndim and all(n in (1, m) for n, m in zip(scale.shape, y.shape))
  if scale.ndim and not per_example and not alike:
    channels = (1,) * (y.ndim - 1) + y.shape[-1:]
    raise ValueError(f'scale has shape {scale.shape} for predictions {y.shape}: give one number, one '
                     f'per example {y.shape[:1]}, or one per channel {channels}')
  return (arrays.expand(scale, y) if per_example else scale) * y


def _checked(scale):
  if isinstance(scale, (tuple, list)):
    raise TypeError(f'scale is the {type(scale).__name__} {scale}: give one number, an array [b] for '
                    'one per example, or an array [1, ..., c] for one per channel')
  arrays.check_scalars(scale=scale)
  if not arrays.is_traced(scale) and np.isnan(np.asarray(scale)).any():
    raise ValueError(f'scale={scale} is NaN: give a number')
  return scale


def _phi(rescale):
  arrays.check_scalars(rescale=rescale)
  known = np.zeros(()) if arrays.is_traced(rescale) else np.asarray(rescale)
  if not np.all((known >= 0) & (known <= 1)):
    raise ValueError(f'rescale={rescale}: give a number from 0 (off) to 1 (full)')
  return None if arrays.is_number(rescale, 0) else rescale


def _rescaled(y, toward, phi):
  return y if phi is None else rescaled(y, toward, phi)


def rescaled(y: Data, toward: Data, phi: ArrayLike) -> Data:
  """(phi std(toward)/std(y) + 1 - phi) y, std per example over all elements of all leaves.

  A large guidance scale raises the std of the prediction, and images come out overexposed; phi = 1
  restores the std of `toward` [Lin+ 2305.08891, section 3.4]. phi is a number or [b]. A constant y is
  returned unchanged. The effect depends on the output that is guided.
  """
  if jnp.ndim(phi):
    arrays.check_numbers('phi', phi, y)
  spread = _std(y)
  flat = spread == 0
  ratio = jnp.where(flat, 1, _std(toward) / jnp.where(flat, 1, spread))
  return arrays.combine((phi * ratio + (1 - phi), y))


def _std(y):
  wide = jax.tree.map(lambda a: a.astype(jnp.promote_types(a.dtype, jnp.float32)), y)
  n = arrays.num_elements(y)
  mean = sum(arrays.rows(a).sum(1) for a in jax.tree.leaves(wide)) / n
  centred = arrays.combine((1, wide), (-mean, jax.tree.map(jnp.ones_like, wide)))
  return jnp.sqrt(arrays.square_norm(centred) / n)


def on_interval(inside: Predict, outside: Predict, *, process: Process, low: Number, high: Number,
                measure: Callable) -> Predict:
  """inside where low <= measure(process, t) <= high, else outside; per example [2404.07724].

  measure is `fields.time`, `fields.logsnr` or `processes.noise_to_signal`; low and high may be
  infinite. Neither predictor is evaluated where no example needs it, so guidance is free outside its
  interval. Raises ValueError where low > high.
  """
  arrays.check_functions(inside=inside, outside=outside, process=process, measure=measure)
  arrays.check_scalars(low=low, high=high)
  check_interval(low, high)
  return arrays.pytree(Partial(_on_interval, inside=inside, outside=outside, process=process, low=low,
                               high=high, measure=measure))


def check_interval(low: Number, high: Number) -> None:
  """Raises ValueError unless low <= high, and where one of them is NaN."""
  if not arrays.is_traced(low, high) and not np.all(np.asarray(low) <= high):
    raise ValueError(f'an interval from {low} to {high} is empty: give low <= high')


def _on_interval(z, t, *, inside, outside, process, low, high, measure):
  value = measure(process, t)
  within = (low <= value) & (value <= high)
  nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(inside, z, t))
  # Two conditionals: where times differ within a batch, both predictors are needed.
  there = jax.lax.cond(jnp.any(within), inside, lambda z, t: nothing, z, t)
  elsewhere = jax.lax.cond(jnp.all(within), lambda z, t: nothing, outside, z, t)
  return jax.tree.map(lambda a, b: jnp.where(arrays.expand(within, a), a, b), there, elsewhere)
