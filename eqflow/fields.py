"""From networks to predictors: input scale, noise conditioning and class condition.

Network = (z, t, condition) -> y, a model with its parameters bound; condition is a pytree with a
leading [b], or None. Predict = (z, t) -> y, t always [b]. The predictors made here are Partials, so
they can be arguments of compiled functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float

from eqflow import arrays, processes
from eqflow.arrays import Coef, Data
from eqflow.mix import remix
from eqflow.outputs import Output
from eqflow.processes import Process, Transport

Network = Callable[[Data, Float[Array, 'b'], Any], Data]
Predict = Callable[[Data, Float[Array, 'b']], Data]


class Model(NamedTuple):
  """A trained network: network(params) is a Network. A pytree, where `network` is a Partial."""
  network: Callable[[Any], Network]
  params: Any


def unit(process: Process, t: Coef) -> Coef:
  """1: the network sees the state as it is."""
  return jnp.ones_like(t)


def unit_variance(process: Process, t: Coef, *, sigma_data: ArrayLike) -> Coef:
  """1/sqrt(sigma^2 + sd^2 alpha^2): the network sees unit variance where data has std sd."""
  state = process(t)
  return 1 / jnp.sqrt(jnp.square(state.eps) + jnp.square(sigma_data * state.x))


def time(process: Process, t: Coef) -> Coef:
  """Noise conditioning t."""
  return t


def none(process: Process, t: Coef) -> Coef:
  """Noise conditioning 0 at every t: the network does not see the time."""
  return jnp.zeros_like(t)


logsnr = processes.logsnr


def quarter_log_sigma(process: Process, t: Coef) -> Coef:
  """Noise conditioning ln(sigma/alpha)/4, EDM's c_noise."""
  return -processes.logsnr(process, t) / 8


def table_index(process: Process, t: Coef) -> Coef:
  """Noise conditioning 1000 t - 1, DiT's: entry k of a table of 1,000 is at t = (k + 1)/1000."""
  return 1000 * t - 1


def conditioned(network: Network, process: Process, *, scale_input: Callable,
                c_noise: Callable) -> Network:
  """network(scale_input z, c_noise, condition), of (z, t, condition).

  Loss and samplers share it, so both scale the input and encode the noise level alike.
  """
  arrays.check_functions(network=network, process=process, scale_input=scale_input,
                         c_noise=c_noise)
  return arrays.pytree(Partial(_conditioned, network=network, process=process, scale_input=scale_input,
                               c_noise=c_noise))


def _conditioned(z, t, condition, *, network, process, scale_input, c_noise):
  return network(arrays.combine((scale_input(process, t), z)), c_noise(process, t), condition)


def bind(network: Network, condition: Any) -> Predict:
  """(z, t) -> network(z, t, condition); condition is a pytree with a leading [b], or None.

  The predictor raises ValueError where condition has another number of rows than z.
  """
  arrays.check_functions(network=network)
  return arrays.pytree(Partial(_bound, network=network, condition=condition))


def _bound(z, t, *, network, condition):
  arrays.check_rows('condition', condition, z)
  return network(z, t, condition)


def at_rest(field: Predict, z: Data) -> Data:
  """f(z) = field(z, 0), in the dtype of z: the slope of a field that does not depend on time."""
  slope = field(z, jnp.zeros(arrays.batch_size(z)))
  arrays.check_alike('the field returned', slope, 'z', z)
  # z must keep its dtype where the network computes in a narrower one.
  return jax.tree.map(lambda a, b: a.astype(b.dtype), slope, z)


def as_output(predict: Predict, *, process: Process, output: Output, to: Output) -> Predict:
  """A predictor of `output` as a predictor of `to`: the remix of z and its prediction."""
  arrays.check_functions(predict=predict, process=process, output=output, to=to)
  return arrays.pytree(Partial(_as_output, predict=predict, process=process, output=output, to=to))


def _as_output(z, t, *, predict, process, output, to):
  return remix(to(process, t), state=process(t), out=output(process, t), z=z, y=predict(z, t))


def transported(predict: Predict, transport: Transport) -> Predict:
  """(z, t) -> predict(scale(t) z, time(t)): a network trained on process_a, on states of process_b.

  On process_b it predicts the output `outputs.transported`. See `processes.transport` for an example.
  """
  arrays.check_functions(predict=predict)
  if not isinstance(transport, Transport):
    raise TypeError(f'transport is {transport!r:.60}: give the result of processes.transport')
  return arrays.pytree(Partial(_transported, predict=predict, transport=transport))


def _transported(z, t, *, predict, transport):
  return predict(arrays.combine((transport.scale(t), z)), transport.time(t))
