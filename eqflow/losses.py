"""One loss: flow, eps, x, v and score matching, EDM and Equilibrium Matching are calls of it."""

from __future__ import annotations

from collections.abc import Callable
import math
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from eqflow import arrays, densities, processes, weights
from eqflow.arrays import Data, Keys, Stream
from eqflow.densities import Density
from eqflow.mix import gain, mix

# (keys, x) -> eps: the noise that is paired with each example.
Coupling = Callable[[Keys, Data], Data]
# The loss of each example, and {'t', 'logsnr', 'error'} of each.
Loss = tuple[Float[Array, 'b'], dict[str, Any]]


# Annotated where the name does not say it: help() shows the signature in two lines.
def matching_loss(keys: Keys, predict, x: Data, *, process, output, density: Density, u=None,
                  coupling=None, target=None, space=None, weight=None, uncertainty=None,
                  penalty=None) -> Loss:
  """weight(t) mean (predict(z, t) - output)^2 in `space`, per example [b], and aux.

  t = density.quantile(u), z = alpha x + sigma eps. u [b] in (0, 1) and eps come from keys [b], one
  per example; u may be given, and eps = coupling(keys, x) is independent of x by default. The mean
  is over all elements of all leaves of x. With target, predict is compared with target(z, t), a
  marginal field or a teacher, instead of the vector of this x and eps. The error in `space`
  (default: the output's own) is the output's times gain(space <- output). weight(process, t) is 1 by
  default. With uncertainty, r = uncertainty(t) [b], the loss is exp(-r) loss + r. With penalty, predict
  returns (y, h), h for example activations, and penalty(h) is added, [b] or one number. aux holds t,
  logsnr and error, the unweighted squared error in `space`, each [b]. x is cast to t's dtype, which is
  float32 or wider. Raises ValueError where predict's shapes are not z's.
  """
  coupling, weight = coupling or arrays.noise_like, weight or weights.ones
  arrays.check_functions(predict=predict, process=process, output=output, coupling=coupling,
                         weight=weight)
  options = dict(target=target, space=space, uncertainty=uncertainty, penalty=penalty)
  arrays.check_functions(**{name: option for name, option in options.items() if option is not None})
  if not isinstance(density, Density):
    raise TypeError(f'density is {density!r:.60}: give a densities.Density, such as densities.uniform')
  arrays.check_keys(keys, arrays.batch_size(x))
  u = densities.draw(arrays.fold(keys, Stream.TIME)) if u is None else arrays.wide(u)
  arrays.check_numbers('u', u, x)
  t = density.quantile(u)
  arrays.check_floating('x', x)
  x = jax.tree.map(lambda a: jnp.asarray(a, t.dtype), x)
  eps = coupling(arrays.fold(keys, Stream.NOISE), x)
  state, out = process(t), output(process, t)
  z = mix(state, x, eps)
  y, h = predict(z, t) if penalty is not None else (predict(z, t), None)
  arrays.check_alike('predict returned', y, 'z', z)
  # The target leads, so that the difference has its dtype where the network computes in less.
  miss = arrays.combine((1, mix(out, x, eps) if target is None else target(z, t)), (-1, y))
  error = arrays.square_norm(miss) / arrays.num_elements(x)
  if space is not None:
    error = error * jnp.square(gain(space(process, t), state=state, out=out))
  loss = weight(process, t) * error
  if uncertainty is not None:
    r = uncertainty(t)
    loss = jnp.exp(-r) * loss + r
  if penalty is not None:
    loss = loss + penalty(h)
  arrays.check_numbers('the weighted loss', loss, x)
  return loss, {'t': t, 'logsnr': processes.logsnr(process, t), 'error': error}


def dispersive(h: Float[Array, 'b ...'], *, temperature: ArrayLike = 1.0) -> Float[Array, '']:
  """log mean_ij exp(-|h_i - h_j|^2/(d tau)), i = j included, d elements in h_i, tau = temperature.

  It falls as the activations of the examples spread out [Wang & He 2506.09027]. It couples the
  examples of a batch, or of a microbatch where gradients are accumulated: the loss of an example then
  depends on the other examples and on the batch size.
  """
  wide = arrays.rows(h).astype(jnp.promote_types(h.dtype, jnp.float32))
  # Centring keeps the distances and reduces their rounding.
  wide = wide - wide.mean(0)
  square = jnp.sum(jnp.square(wide), 1)
  distance = (square + arrays.expand(square, wide) - 2 * wide @ wide.T) / wide.shape[1]
  return jax.nn.logsumexp(-distance / temperature) - 2 * math.log(max(len(h), 1))
