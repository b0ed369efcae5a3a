"""An exact equilibrium field in the plane and a trained one on the digits: zeros and descents."""

from typing import Any, NamedTuple

from flax import linen as nn
import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from matplotlib import pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from eqflow import arrays, densities, descent, energies, fields, guidance, ood, outputs, processes
from eqflow.evaluation import images
from eqflow.mix import mix
from eqflow.models.mlp import MLP
from experiments import colours
from experiments.fit import fit

PROCESS = processes.linear
DECAY = Partial(outputs.truncated_decay, start=0.8, gain=4.0)
OUTPUT = Partial(outputs.equilibrium, decay=DECAY)
STEP = 0.003
# Radii of two rings of eight points: the method works on the wide one and not on the narrow one.
FAR, NEAR = 2.0, 0.4


def ring(radius: Any) -> jax.Array:
  """Eight points [8, 2] on a circle."""
  angle = jnp.arange(8) * jnp.pi / 4
  return radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)


def exact(data: jax.Array) -> Any:
  """The field that training converges to, E[(eps - x) c | z] over all times, for data [n, d]."""
  return Partial(_exact, data=jnp.asarray(data))


@jax.jit
def _exact(z, t, *, data):
  # Nodes are even in log sigma: near data the posterior is at small sigma.
  sigma = jnp.geomspace(1e-3, 1, 80)
  state = PROCESS(sigma)
  c = DECAY(state.x)[:, None, None]

  def one(z):
    eps = (z - state.x[:, None, None] * data) / sigma[:, None, None]
    weight = -jnp.square(eps).sum(-1) / 2 + (1 - data.shape[1]) * jnp.log(sigma)[:, None]
    posterior = jax.nn.softmax(weight.reshape(-1)).reshape(weight.shape)
    return jnp.sum(posterior[..., None] * (eps - data) * c, axis=(0, 1))

  return jax.lax.map(one, z, batch_size=64)


def curvature(radius: float) -> float:
  """The slope of the field at the centre of the ring. Above 0 the centre is a valley."""
  return float(_curvature(radius))


@jax.jit
def _curvature(radius):
  slopes = jax.jacfwd(lambda z: exact(ring(radius))(z[None], None)[0])(jnp.zeros(2))
  return jnp.trace(slopes) / 2


def descended(data: jax.Array, count: int, num_steps: int) -> np.ndarray:
  """z [count, 2] after num_steps gradient steps on the exact field, from noise."""
  z = jax.random.normal(jax.random.key(3), (count, 2))
  return np.asarray(descent.descend(
      descent.gradient_descent(STEP), exact(data), z, num_steps=num_steps))


def arrived(z: np.ndarray, data: jax.Array) -> float:
  """The fraction of z [n, d] within a tenth of the smallest distance between two data points of one."""
  between = np.linalg.norm(np.asarray(data)[:, None] - np.asarray(data), axis=-1)
  spacing = between[between > 0].min()
  far = np.linalg.norm(np.asarray(z)[:, None] - np.asarray(data), axis=-1).min(1)
  return float((far < spacing / 10).mean())


def draw_landscapes(ends: dict[float, np.ndarray]) -> plt.Figure:
  """log |f|, flow lines and the ends of descents for each radius of `ends`; the slope by radius."""
  figure, axes = plt.subplots(1, len(ends) + 1, figsize=(4.4 * (len(ends) + 1), 4.4),
                              layout='constrained')
  for axis, (radius, z) in zip(axes, ends.items()):
    side = np.linspace(-1.6, 1.6, 31) * radius
    grid = np.stack(np.meshgrid(side, side), axis=-1)
    f = np.asarray(exact(ring(radius))(jnp.asarray(grid.reshape(-1, 2), jnp.float32), None))
    f = f.reshape(grid.shape)
    shade = axis.contourf(side, side, np.log10(np.linalg.norm(f, axis=-1) + 1e-3), 20, cmap='viridis')
    figure.colorbar(shade, ax=axis, label='log10 |f|', shrink=0.8)
    axis.streamplot(side, side, -f[..., 0], -f[..., 1], color='white', linewidth=0.5, arrowsize=0.7)
    axis.plot(*z.T, '.', color=colours.RED, markersize=4, label='ends of descents')
    axis.plot(*np.asarray(ring(radius)).T, 'o', markerfacecolor='none', color='white', label='data')
    axis.set(title=f'radius {radius:g}: {arrived(z, ring(radius)):.0%} at a data point', aspect='equal',
             xlim=side[[0, -1]], ylim=side[[0, -1]], xlabel='z1', ylabel='z2')
  radii = np.geomspace(0.2, 4, 12)
  axes[-1].semilogx(radii, [curvature(radius) for radius in radii], color=colours.BLUE)
  axes[-1].axhline(0, color=colours.GREY, linewidth=0.8)
  axes[0].legend(fontsize=8, loc='upper left', facecolor='0.6')
  axes[-1].set(title='slope of the field at the centre', xlabel='radius', ylabel='mean df/dz',
               xticks=[0.2, 0.5, 1, 2, 4], xticklabels=['0.2', '0.5', '1', '2', '4'])
  axes[-1].minorticks_off()
  return figure


class Gradient(NamedTuple):
  """A model for `fit`: the gradient of the energy E = z . y."""
  model: Any

  def init(self, *given: Any) -> Any:
    """The parameters of y."""
    return self.model.init(*given)

  def energy(self, variables: Any) -> Any:
    """(z, t, condition) -> E [b], blind to time."""
    return energies.dot(Partial(_product, variables=variables, apply=arrays.Static(self.model.apply)))

  def apply(self, variables: Any, z: Any, t: Any) -> Any:
    """grad_z E."""
    return energies.energy_gradient(self.energy(variables))(z, t, None)


def _product(z, t, condition, *, variables, apply):
  return apply.value(variables, z, jnp.zeros_like(t))


def with_energy(data: jax.Array, num_steps: int) -> tuple[Any, Any, Any]:
  """(E, its gradient, the network y in E = z . y), each (z, t) -> ..., trained on data [n, 2]."""
  model = Gradient(MLP(width=96, depth=3))
  predict, _ = fit(model, data, process=PROCESS, output=OUTPUT, density=densities.uniform,
                   num_steps=num_steps, batch=256)
  variables = predict.args[0]
  energy = fields.bind(model.energy(variables), None)
  return energy, predict, fields.bind(model.energy(variables).keywords['network'], None)


def draw_energy(energy: Any, field: Any, data: jax.Array, num_steps: int) -> tuple[plt.Figure, Any]:
  """The energy in the plane with descents, and E along them; also returns E [k, n]."""
  z, every = jax.random.normal(jax.random.key(3), (40, 2)), num_steps // 20
  states = [z]
  for _ in range(20):
    states.append(descent.descend(descent.gradient_descent(STEP), field, states[-1], num_steps=every))
  values = np.stack([np.asarray(ood.energy_at(energy, state)) for state in states])
  figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout='constrained')
  side = np.linspace(-3.2, 3.2, 81, dtype=np.float32)
  grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
  surface = np.asarray(ood.energy_at(energy, jnp.asarray(grid))).reshape(81, 81)
  axes[0].contourf(side, side, surface, 30, cmap='viridis')
  for path in np.stack(states, axis=1):
    axes[0].plot(*path.T, color='white', linewidth=0.6)
  axes[0].plot(*np.asarray(states[-1]).T, '.', color=colours.RED)
  axes[0].plot(*np.asarray(data).T, 'o', markerfacecolor='none', color='white')
  axes[0].set(title='E = z · g(z), and descents', aspect='equal')
  axes[1].plot(np.arange(21) * every, values, color=colours.BLUE, linewidth=0.7, alpha=0.6)
  axes[1].set(title='E along the descents', xlabel='step', ylabel='E')
  return figure, values


class Blind(nn.Module):
  """An MLP that ignores the time: (z, t, label) -> y."""
  width: int
  depth: int

  @nn.compact
  def __call__(self, z: Any, t: Any, label: Any) -> Any:
    """y [b, d] of z [b, d] and label [b]."""
    return MLP(width=self.width, depth=self.depth, num_classes=10)(z, jnp.zeros_like(t), label)


def digits() -> tuple[jax.Array, jax.Array]:
  """(x [1797, 64] from -1 to 1, label [1797]): the digits of scikit-learn."""
  data = load_digits()
  return jnp.asarray(data.data / 8 - 1, jnp.float32), jnp.asarray(data.target, jnp.int32)


def train(x: jax.Array, label: jax.Array, num_steps: int) -> Any:
  """The network (z, t, label) -> field, trained on the digits."""
  return fit(Blind(width=384, depth=3), x, label=label, process=PROCESS, output=OUTPUT,
             density=densities.uniform, num_steps=num_steps, batch=256)[0]


def norms_along_descent(network: Any, label: jax.Array, at: list[int]) -> tuple[list, np.ndarray]:
  """A descent from noise: (states [b, 64] after the given steps, |f| [steps, b] there)."""
  z, states, norms = noise(len(label)), [], []
  predict, solver = fields.bind(network, label), descent.gradient_descent(STEP)
  for first, last in zip([0, *at], at):
    z = descent.descend(solver, predict, z, num_steps=last - first)
    states.append(z)
    norms.append(np.linalg.norm(predict(z, jnp.zeros(len(z))), axis=1))
  return states, np.array(norms)


def noise(n: int) -> jax.Array:
  """z [n, 64] ~ N(0, I), the start of samples."""
  return jax.random.normal(jax.random.key(7), (n, 64))


def settled(network: Any, z: jax.Array, label: jax.Array, threshold: float) -> tuple[Any, np.ndarray]:
  """(samples, steps [b]): each z descends until |f| is below the threshold."""
  found, steps, _ = descent.descend_refilled(
      descent.gradient_descent(STEP), network, z, label, slots=128, max_steps=400, threshold=threshold)
  return found, np.asarray(steps)


def partly_noised(x: jax.Array, t: float) -> jax.Array:
  """(1 - t) x + t eps."""
  return mix(PROCESS(jnp.float32(t)), x, noise(len(x)))


def composed(network: Any, first: jax.Array, second: jax.Array, num_steps: int) -> jax.Array:
  """Samples that descend the mean of the fields of two classes."""
  predict = guidance.added([fields.bind(network, label) for label in (first, second)], [0.5, 0.5])
  return descent.descend(descent.gradient_descent(STEP), predict, noise(len(first)),
                         num_steps=num_steps)


def draw_rows(rows: dict[str, Any]) -> plt.Figure:
  """Rows of digits [b, 64], each with its name."""
  figure, axes = plt.subplots(len(rows), 1, figsize=(8, 0.62 * len(rows)), layout='constrained')
  for axis, (name, x) in zip(np.atleast_1d(axes), rows.items()):
    picture = images.grid(np.asarray(x).reshape(-1, 8, 8, 1), columns=len(x))
    axis.imshow(picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap='gray')
    axis.set(xticks=[], yticks=[])
    axis.set_ylabel(name, rotation=0, ha='right', va='center')
  return figure


def draw_steps(norms: np.ndarray, at: list[int], steps: dict[str, np.ndarray]) -> plt.Figure:
  """|f| along a descent, and the number of steps from each noise level."""
  figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout='constrained')
  low, middle, high = np.quantile(norms, [0.05, 0.5, 0.95], axis=1)
  axes[0].fill_between(at, low, high, alpha=0.3, color=colours.BLUE)
  axes[0].semilogy(at, middle, color=colours.BLUE)
  axes[0].set(xlabel='step', ylabel='|f|, median and 5 to 95 %')
  for name, taken in steps.items():
    axes[1].hist(taken, bins=np.arange(0, 400, 8), alpha=0.6, label=name)
  axes[1].set(xlabel='steps until |f| is below the threshold', ylabel='samples')
  axes[1].legend()
  return figure
