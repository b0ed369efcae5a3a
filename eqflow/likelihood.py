"""log p(x) along the probability-flow ODE dz/dt = u(z, t), which maps data to noise.

Along a path the density changes by d log p/dt = -div u [Chen+ 1806.07366], so that

  log p(x) = log p(z_end) + integral of div u dt + log |dz_start/dx|

[Song+ 2011.13456, appendix D.2], in nats. The divergence is exact, or Hutchinson's estimate with
probes that are drawn once for each sample. This is the density of the flow of the predictor; for a
guided predictor it has no meaning.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
from jax import numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Int, Num
import numpy as np

from eqflow import arrays, blind_spots, fields, outputs
from eqflow.arrays import Data, Keys, Number, combine
from eqflow.samplers import runge_kutta

# The distance of two neighbouring grey levels: images are uint8/127.5 - 1.
BIN = 1 / 127.5


class Latent(NamedTuple):
  """z at the last time, and the number of network evaluations [b]."""
  z: Data
  evaluations: Int[Array, 'b']


# log p of each example, and where its path ends.
LogP = tuple[Float[Array, 'b'], Latent]


def rademacher(keys: Keys, z: Data) -> Data:
  """Probes of -1 and 1, shaped as z: the least variance among probes with independent elements."""
  return arrays.noise_like(keys, z, draw=jax.random.rademacher)


# Annotated where the name does not say it: help() shows the signature in two lines.
def log_likelihood(predict, x: Data, *, process, output, times=(1e-5, 1.0), keys=None, num_probes=1,
                   probe=None, rtol=1e-6, atol=1e-6, max_steps=1000, mean=0.0, std=0.0) -> LogP:
  """(log p(x) [b] in nats, its Latent) for x [b, ...], over all elements of all leaves.

  times rise. Two times are the ends of adaptive steps, which each sample chooses as in
  `samplers.adaptive`; a sample that needs more than max_steps is NaN. Derivatives are then of forward
  mode only. More times are a fixed grid, differentiable in both modes, with one classical Runge-Kutta
  step for each pair. On a discrete table u jumps at every entry and both
  converge slowly: first `processes.transport` to a smooth process.

  At the first time, with sigma/alpha = r, p is the density of data plus noise of std r; its error is
  r^2 (lap p)/2. At the last, z ~ N(alpha mean, alpha^2 std^2 + sigma^2). mean and std describe the
  data, as numbers or arrays shaped as one x. They matter where alpha is not 0: on
  `variance_preserving`, and on `edm`, which is integrated to sigma = 80 or so.

  Without keys the divergence is exact, at one derivative per element. With keys [b] it is the mean
  of <v, du/dz v> over num_probes probes v = probe(keys, x): `rademacher` by default, or
  `arrays.noise_like`.
  Raises ValueError, before compiling, where the output is blind, the times do not rise from t > 0 to
  almost pure noise, or keys and num_probes do not fit.
  """
  probe = probe or rademacher
  arrays.check_functions(predict=predict, process=process, output=output, probe=probe)
  arrays.check_scalars(num_probes=num_probes, rtol=rtol, atol=atol, max_steps=max_steps)
  x = jax.tree.map(jnp.asarray, x)
  for leaf in jax.tree.leaves(x):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise ValueError(f'x is {leaf.dtype}, not floating: `dequantize` images, or cast')
  _check_probes(keys, num_probes, arrays.batch_size(x))
  _check_times(times, process, output)
  # Times that repeat count once.
  times = jnp.asarray(times if arrays.is_traced(times) else np.unique(times), jnp.result_type(float))
  return _log_likelihood(
      arrays.pytree(predict), x, arrays.pytree(process), arrays.pytree(output), times, keys,
      arrays.pytree(probe), (rtol, atol), (mean, std), num_probes=num_probes, max_steps=max_steps)


def _check_probes(keys, num_probes, b):
  if num_probes < 1 or (keys is None and num_probes != 1):
    raise ValueError(f'num_probes={num_probes} with keys={keys}: give keys [b] and 1 or more probes, '
                     'or neither for the exact divergence')
  if keys is not None:
    arrays.check_keys(keys, b)


def _check_times(times, process, output):
  if arrays.is_traced(times):
    return
  times = np.asarray(times, np.float64)
  if (times.ndim != 1 or len(times) < 2 or not 0 < times[0] < times[-1]
      or not (np.diff(times) >= 0).all()):
    raise ValueError(f'times {times}: give two or more that rise from data at t > 0 to noise, such as '
                     '(1e-5, 1.0)')
  blind_spots.check_grid(times, process=process, output=output, last=True)
  try:
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
      alpha, sigma = map(float, process(jnp.asarray(times[-1])))
  except jax.errors.ConcretizationTypeError:
    return  # A number of the process is traced.
  if alpha > 0.1 * sigma:
    raise ValueError(f'at t={times[-1]:.6g} the state still has data (alpha={alpha:.3g}, sigma='
                     f'{sigma:.3g}) of unknown density: end the times where sigma/alpha is '
                     '10 or more, such as t=1, or 80 on edm')


@functools.partial(jax.jit, static_argnames=('num_probes', 'max_steps'))
def _log_likelihood(predict, x, process, output, times, keys, probe, tolerances, moments, *,
                    num_probes, max_steps):
  b, (start, end) = arrays.batch_size(x), (process(t) for t in (times[0], times[-1]))
  # In the dtype of t or wider, also where the network computes in a smaller one.
  x = jax.tree.map(lambda a: a.astype(jnp.promote_types(a.dtype, times.dtype)), x)
  velocity = fields.as_output(predict, process=process, output=output, to=outputs.u)
  if keys is None:
    divergence = _exact
  else:
    drawn = [probe(arrays.fold_number(keys, i), x) for i in range(num_probes)]
    divergence = Partial(_estimated, probes=drawn)

  def field(state, t):
    z, _ = state
    u, push = jax.linearize(lambda z: velocity(z, t), z)
    return u, divergence(push, z)

  state = combine((start.x, x)), jnp.zeros(b, times.dtype)
  if len(times) == 2:
    (z, grown), count = runge_kutta.integrate(
        field, state, times[0], times[1], rtol=tolerances[0], atol=tolerances[1],
        max_steps=max_steps)
    z, grown = arrays.forward_only('log_likelihood between two times', (z, grown))
  else:
    z, grown = _stepped(field, state, times)
    count = jnp.full(b, 4 * (times[1:] != times[:-1]).sum())
  scale = arrays.num_elements(x) * jnp.log(start.x)
  return _log_gaussian(z, end, *moments) + grown + scale, Latent(z, count)


def _exact(push, z):
  """The trace of du/dz, by one derivative for each element, 64 at a time."""
  one = jax.tree.map(lambda a: jnp.zeros(a.shape[1:], a.dtype), z)
  flat, unravel = ravel_pytree(one)

  def entry(i):
    unit = unravel(jax.nn.one_hot(i, flat.size, dtype=flat.dtype))
    v = jax.tree.map(lambda e, a: jnp.broadcast_to(e, a.shape), unit, z)
    return arrays.inner(v, push(v))

  return jnp.sum(jax.lax.map(entry, jnp.arange(flat.size), batch_size=64), axis=0)


def _estimated(push, z, *, probes):
  """The mean of <v, du/dz v> over the probes [Hutchinson]."""
  return sum(arrays.inner(v, push(v)) for v in probes) / len(probes)


def _stepped(field, state, times):
  """The state at the last time, by the classical fourth-order Runge-Kutta step for each pair."""
  b = arrays.batch_size(state[0])
  tableau = jnp.array([0, 1 / 2, 1 / 2, 1]), jnp.array([1 / 6, 1 / 3, 1 / 3, 1 / 6])

  def step(y, pair):
    t, s = pair

    def stage(carry, row):
      slope, total = carry
      ahead, weight = row
      at = (1 - ahead) * t + ahead * s
      slope = field(combine((1, y), (at - t, slope)), jnp.broadcast_to(at, (b,)))
      return (slope, combine((1, total), (weight * (s - t), slope))), None

    rest = jax.tree.map(jnp.zeros_like, y)
    return jax.lax.scan(stage, (rest, y), tableau)[0][1], None

  return jax.lax.scan(step, state, (times[:-1], times[1:]))[0]


def _log_gaussian(z, state, mean, std):
  """log N(z; alpha mean, alpha^2 std^2 + sigma^2) per example."""
  alike = lambda a: a if jax.tree.structure(a) == jax.tree.structure(z) else jax.tree.map(
      lambda _: a, z)

  def leaf(z, mean, std):
    variance = (state.x * std) ** 2 + state.eps**2
    return -((z - state.x * mean) ** 2 / variance + jnp.log(2 * jnp.pi * variance)) / 2

  return _total(jax.tree.map(leaf, z, alike(mean), alike(std)))


def _total(tree):
  return sum(jnp.sum(arrays.rows(a), axis=1) for a in jax.tree.leaves(tree))


def dequantize(keys: Keys, image: Num[Array | np.ndarray, 'b ...'], *,
               bin_width: Number = BIN) -> Float[Array, 'b ...']:
  """x = image/127.5 - 1 + (u - 1/2) bin_width, u uniform in (0, 1): noise around each level.

  bin_width is the distance of neighbouring levels: 1/127.5, or more for images with fewer than 256. A
  network trained on the levels themselves has not seen this noise: start its times where sigma/alpha is
  about the std of the noise, bin_width/sqrt(12). The result there is a density as well.
  """
  arrays.check_keys(keys, arrays.batch_size(image))
  if image.dtype != jnp.uint8:
    raise ValueError(f'image is {image.dtype}: give the uint8 of the file, 0 to 255')
  u = jax.vmap(lambda key: jax.random.uniform(key, image.shape[1:]))(keys)
  return jnp.asarray(image) * BIN - 1 + (u - 0.5) * bin_width


def bits_per_dimension(log_p: Float[ArrayLike, '*shape'], num_dims: int, *,
                       bin_width: Number = BIN) -> Float[Array, '*shape']:
  """-log2(p(x) width^d)/d: bits per element of an image, from log p in nats.

  With x = dequantize(keys, image), the mean over keys is an upper bound on the bits of the discrete
  model P(image), the integral of p over the bin [Theis+ 1511.01844]. Uniform noise has 8.
  """
  return -(jnp.asarray(log_p) / num_dims + jnp.log(bin_width)) / jnp.log(2.0)
