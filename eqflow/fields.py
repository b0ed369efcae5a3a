"""From networks to predictors: where time, scale and condition meet a network.

Network = (z, t, condition) -> y, a model with its parameters bound; condition is a pytree with a
leading [b], or None. Predict = (z, t) -> y, t always [b]. All of these are Partials: jit arguments.
"""

from collections.abc import Callable
from typing import Any

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


@Partial
def unit(process: Process, t: Coef) -> Coef:
  """1: the network sees the state as it is."""
  return jnp.ones_like(t)


def unit_variance(process: Process, t: Coef, *, sigma_data: ArrayLike) -> Coef:
  """1/sqrt(sigma^2 + sd^2 alpha^2): the network sees unit variance where data has std sd."""
  state = process(t)
  return 1 / jnp.sqrt(jnp.square(state.eps) + jnp.square(sigma_data * state.x))


@Partial
def time(process: Process, t: Coef) -> Coef:
  """The noise label t."""
  return t


@Partial
def none(process: Process, t: Coef) -> Coef:
  """The noise label 0 at every t: a network that is blind to time."""
  return jnp.zeros_like(t)


logsnr = processes.logsnr


@Partial
def quarter_log_sigma(process: Process, t: Coef) -> Coef:
  """The noise label ln(sigma/alpha)/4, EDM's c_noise."""
  return -processes.logsnr(process, t) / 8


@Partial
def table_index(process: Process, t: Coef) -> Coef:
  """The noise label 1000 t - 1: entry k of a table of 1,000 is t = (k + 1)/1000, as DiT has it."""
  return 1000 * t - 1


def conditioned(network: Network, process: Process, *, scale_input: Callable,
                label_noise: Callable) -> Network:
  """network(scale_input z, label_noise, condition), of (z, t, condition).

  The one place where time and scale meet a network; loss and samplers share it.
  """
  return Partial(_conditioned, network=arrays.pytree(network), process=arrays.pytree(process),
                 scale_input=arrays.pytree(scale_input), label_noise=arrays.pytree(label_noise))


def _conditioned(z, t, condition, *, network, process, scale_input, label_noise):
  return network(arrays.combine((scale_input(process, t), z)), label_noise(process, t), condition)


def bind(network: Network, condition: Any) -> Predict:
  """(z, t) -> network(z, t, condition)."""
  return Partial(_bound, network=arrays.pytree(network), condition=condition)


def _bound(z, t, *, network, condition):
  return network(z, t, condition)


def at_rest(field: Predict, z: Data) -> Data:
  """f(z) = field(z, 0), in the dtype of z: the slope of a field that does not depend on time."""
  slope = field(z, jnp.zeros(arrays.batch_size(z)))
  arrays.check_alike('the field returned', slope, 'z', z)
  # z must keep its dtype where the network computes in a narrower one.
  return jax.tree.map(lambda a, b: a.astype(b.dtype), slope, z)


def as_output(predict: Predict, *, process: Process, output: Output, to: Output) -> Predict:
  """A predictor of `output`, asked for `to`: remix of the state and what it returns."""
  return Partial(_as_output, predict=arrays.pytree(predict), process=arrays.pytree(process),
                 output=arrays.pytree(output), to=arrays.pytree(to))


def _as_output(z, t, *, predict, process, output, to):
  return remix(to(process, t), state=process(t), out=output(process, t), z=z, y=predict(z, t))


def transported(predict: Predict, transport: Transport) -> Predict:
  """(z, t) -> predict(scale(t) z, time(t)): a network trained on process_a, on states of process_b.

  What it predicts is a vector of process_a's: `outputs.transported` on process_b.
  """
  return Partial(_transported, predict=arrays.pytree(predict), transport=transport)


def _transported(z, t, *, predict, transport):
  return predict(arrays.combine((transport.scale(t), z)), transport.time(t))
