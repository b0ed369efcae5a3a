"""One loss. Flow matching, eps-, x-, v- and score-matching, EDM and Equilibrium Matching are calls."""

from collections.abc import Callable
import math
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from eqflow import arrays, densities, processes, weights
from eqflow.arrays import Data, Keys
from eqflow.densities import Density
from eqflow.fields import Predict
from eqflow.mix import gain, mix
from eqflow.outputs import Output
from eqflow.processes import Process
from eqflow.weights import Weight

# Which noise goes with which data.
Coupling = Callable[[Keys, Data], Data]


def matching_loss(keys: Keys, predict: Predict, x: Data, *, process: Process, output: Output,
                  density: Density, u: Float[Array, 'b'] | None = None,
                  coupling: Coupling = arrays.noise_like, target: Predict | None = None,
                  space: Output | None = None, weight: Weight = weights.ones,
                  uncertainty: Callable | None = None,
                  penalty: Callable | None = None) -> tuple[Float[Array, 'b'], dict[str, Any]]:
  """weight(t) mean (predict(z, t) - output)^2 in `space`, per example [b], and aux.

  t = density.quantile(u), z = alpha x + sigma eps. u [b] in (0, 1) and eps come from keys [b], one
  per example; u may be given, and eps = coupling(keys, x) is independent of x by default. The mean
  is over all coordinates of all leaves of x. With target, predict is compared with target(z, t), a
  marginal field or a teacher, instead of the vector of this x and eps. The error in `space`
  (default: the output's own) is the output's times gain(space <- output). With
  uncertainty, r = uncertainty(t) [b], the loss is exp(-r) loss + r. With penalty, predict returns
  (y, h), h for example activations, and penalty(h) is added, [b] or one number. aux holds t, logsnr
  and error, the unweighted squared error in `space`, each [b]. x is cast to t's dtype. Raises
  ValueError where predict's shapes are not z's.
  """
  b = arrays.batch_size(x)
  u = densities.draw(arrays.fold(keys, 0)) if u is None else jnp.asarray(u)
  _check_shape('u', u, b)
  t = density.quantile(u)
  x = jax.tree.map(lambda a: _floating(a).astype(t.dtype), x)
  eps = coupling(arrays.fold(keys, 1), x)
  state, out = process(t), output(process, t)
  z = mix(state, x, eps)
  y, h = predict(z, t) if penalty is not None else (predict(z, t), None)
  arrays.check_alike('predict returned', y, 'z', z)
  # The target leads, so that the difference has its dtype where the network computes in less.
  miss = arrays.combine((1, mix(out, x, eps) if target is None else target(z, t)), (-1, y))
  error = arrays.square_norm(miss) / arrays.coordinates(x)
  if space is not None:
    error = error * jnp.square(gain(space(process, t), state=state, out=out))
  loss = weight(process, t) * error
  if uncertainty is not None:
    r = uncertainty(t)
    loss = jnp.exp(-r) * loss + r
  if penalty is not None:
    loss = loss + penalty(h)
  _check_shape('the loss, weighted,', loss, b)
  return loss, {'t': t, 'logsnr': processes.logsnr(process, t), 'error': error}


def dispersive(h: Float[Array, 'b ...'], *, temperature: ArrayLike = 1.0) -> Float[Array, '']:
  """log mean_ij exp(-|h_i - h_j|^2/(d tau)), i = j included, d coordinates in h_i, tau = temperature.

  It falls as the activations of the examples spread out [Wang & He 2506.09027]. It couples the
  examples of a batch, or of a microbatch where gradients are accumulated: the loss of one is no
  longer its own, and the batch size matters.
  """
  wide = h.reshape(len(h), -1).astype(jnp.promote_types(h.dtype, jnp.float32))
  # Distances do not change, and are better told apart.
  wide = wide - wide.mean(0)
  square = jnp.sum(jnp.square(wide), 1)
  distance = (square + arrays.expand(square, wide) - 2 * wide @ wide.T) / wide.shape[1]
  return jax.nn.logsumexp(-distance / temperature) - 2 * math.log(len(h))


def _check_shape(name, a, b):
  if jnp.shape(a) != (b,):
    raise ValueError(f'{name} has the shape {jnp.shape(a)}: one number for each of {b} examples')


def _floating(a):
  a = jnp.asarray(a)
  if not jnp.issubdtype(a.dtype, jnp.floating):
    raise TypeError(f'x must be floating, not {a.dtype}: scale it to about unit size, for example '
                    'uint8 images to x / 127.5 - 1')
  return a
