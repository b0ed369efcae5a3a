"""Blind spots of outputs: |gain| over t, errors of trained networks, and their one-step samples."""

from typing import Any

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from matplotlib import pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from eqflow import densities, grids, oracles, outputs, processes, samplers
from eqflow.evaluation import images
from eqflow.mix import Mix, gain, mix, remix
from eqflow.models.mlp import MLP
from experiments import colours
from experiments.fit import fit

PROCESS = processes.cosine
# Almost pure noise; t = 1 itself is a blind spot of eps.
START = 0.99
OUTPUTS = {'eps': outputs.eps, 'x': outputs.x, 'v': outputs.v, 'u': outputs.u}
# Dashes for lines that coincide.
STYLES = {
    'eps': dict(color=colours.RED, linestyle='-'), 'x': dict(color=colours.BLUE, linestyle='-'),
    'v': dict(color=colours.GREEN, linestyle='-'), 'u': dict(color=colours.PINK, linestyle=(0, (4, 3)))}
# title: (process, times to draw). EDM's t is its sigma.
SPANS = {
    'linear': (processes.linear, np.linspace(0.001, 0.999, 999)),
    'cosine': (processes.cosine, np.linspace(0.001, 0.999, 999)),
    'EDM': (processes.edm, np.geomspace(0.002, 80, 400))}


def digits() -> jax.Array:
  """The 1,797 digits of scikit-learn [1797, 64], from -1 (paper) to 1 (ink)."""
  return jnp.asarray(load_digits().data / 8 - 1, jnp.float32)


def train(x: jax.Array, num_steps: int) -> dict[str, Any]:
  """{name: predict}: one small MLP for each output; nothing else differs."""
  density = densities.uniform_on(0.001, 0.999)
  return {name: fit(MLP(width=256, depth=3), x, process=PROCESS, output=Partial(chosen, place=place),
                    density=density, num_steps=num_steps)[0] for place, name in enumerate(OUTPUTS)}


def chosen(process: Any, t: Any, *, place: int) -> Mix:
  """Output number `place` of OUTPUTS. A bound number, so that all four share one compilation."""
  return jax.lax.switch(place, [Partial(output, process) for output in OUTPUTS.values()], t)


def noise(n: int) -> jax.Array:
  """z [n, 64] ~ N(0, I), where sampling starts."""
  return jax.random.normal(jax.random.key(7), (n, 64))


def best(x: jax.Array, z: jax.Array) -> jax.Array:
  """The exact E[x | z] at START, for data uniform over the records x."""
  return oracles.finite(z, jnp.full(len(z), START), process=PROCESS, output=outputs.x, data=x)


def returned(predicts: dict[str, Any], z: jax.Array) -> dict[str, jax.Array]:
  """{name: y}: the output of each network for the noise z at START."""
  return {name: predict(z, jnp.full(len(z), START)) for name, predict in predicts.items()}


def sampled(predicts: dict[str, Any], z: jax.Array, num_steps: int) -> dict[str, jax.Array]:
  """{name: x}: samples of DDIM from the noise z at START, in that many steps."""
  grid = grids.uniform(num_steps, START)
  return {name: samplers.sample(samplers.ddim(PROCESS, OUTPUTS[name]), predict, z, grid)
          for name, predict in predicts.items()}


def correlation(a: Any, b: Any) -> float:
  """The mean over examples of the correlation of a [b, d] with b [b, d]."""
  unit = lambda a: (a - a.mean(1, keepdims=True)) / a.std(1, keepdims=True)
  return float((unit(np.asarray(a)) * unit(np.asarray(b))).mean())


def rms(a: Any) -> float:
  """sqrt of the mean square of a."""
  return float(np.sqrt(np.mean(np.square(a))))


def misses(predicts: dict[str, Any], x: jax.Array, at: Any, n: int = 128) -> dict[str, Any]:
  """{name: [own, in x, in eps]}: rms error against the exact E[output | z], over the times `at`.

  For a finite data set `oracles.finite` is exact. `remix` converts both into x and into eps.
  """
  data = x[:n]
  eps = noise(n)

  def one(t, name, predict):
    t = jnp.full(n, t)
    state, output = PROCESS(t), OUTPUTS[name]
    z = mix(state, data, eps)
    y = predict(z, t)
    ideal = oracles.finite(z, t, process=PROCESS, output=output, data=x)
    converted = lambda y, to: remix(to(PROCESS, t), state=state, out=output(PROCESS, t), z=z, y=y)
    miss = lambda to: jnp.sqrt(jnp.mean(jnp.square(converted(y, to) - converted(ideal, to))))
    return jnp.stack([miss(output), miss(outputs.x), miss(outputs.eps)])

  over = jax.jit(lambda name, predict: jax.lax.map(
      lambda t: one(t, name, predict), jnp.asarray(at, jnp.float32)), static_argnums=0)
  return {name: np.asarray(over(name, predict)).T for name, predict in predicts.items()}


def draw_gains() -> plt.Figure:
  """|gain(x <- output)| and |gain(eps <- output)| over t, on three processes."""
  figure, axes = plt.subplots(2, 3, figsize=(11, 5.6), sharex='col', sharey=True, layout='constrained')
  for row, to in zip(axes, (outputs.x, outputs.eps)):
    for axis, (title, (process, span)) in zip(row, SPANS.items()):
      for name, output in OUTPUTS.items():
        t = jnp.asarray(span)
        stretch = gain(to(process, t), state=process(t), out=output(process, t))
        axis.plot(span, np.abs(stretch), label=name, linewidth=2, **STYLES[name])
      axis.set(yscale='log', ylim=(1e-3, 1e3), xscale='log' if title == 'EDM' else 'linear')
      axis.grid(alpha=0.25)
      axis.axhline(1, color='0.6', linewidth=0.8)
  for axis, title in zip(axes[0], SPANS):
    axis.set_title(title)
  for axis, label in zip(axes[1], ('t', 't', 't = sigma')):
    axis.set_xlabel(f'{label}   (data to noise)')
  axes[0, 0].set_ylabel('|gain(x ← output)|')
  axes[1, 0].set_ylabel('|gain(eps ← output)|')
  figure.legend(*axes[0, 0].get_legend_handles_labels(), loc='outside right center', frameon=False)
  return figure


def draw_misses(at: Any, measured: dict[str, Any]) -> plt.Figure:
  """The measured errors over t: in the output itself, and converted into x and into eps."""
  figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True, layout='constrained')
  titles = ('error of the output', 'error of x', 'error of eps')
  for axis, title, k in zip(axes, titles, range(3)):
    for name, error in measured.items():
      axis.plot(at, error[k], label=name, linewidth=2, **STYLES[name])
    axis.set(title=title, yscale='log', xlabel='t   (data to noise)', xlim=(0, 1))
    axis.grid(alpha=0.25)
  axes[0].set_ylabel('RMS error, of a pixel')
  figure.legend(*axes[0].get_legend_handles_labels(), loc='outside right center', frameon=False)
  return figure


def draw_samples(x: Any, z: Any, exact: Any, answers: dict, one: dict, many: dict) -> plt.Figure:
  """By output: the network's answer at START, the same converted into x, and samples in 50 steps."""
  figure, axes = plt.subplots(3, 5, figsize=(10, 6.7), layout='constrained')
  figure.get_layout_engine().set(wspace=0.06, hspace=0.04)
  rows = (
      (f'network output\nat t = {START}', 'noise z', z, answers),
      ('converted to x:\none step', 'exact E[x | z]', exact, one),
      ('50 steps', 'data', x, many))
  for row, (label, left, reference, made) in zip(axes, rows):
    for axis, pictures in zip(row, (reference, *made.values())):
      sheet = images.grid(np.reshape(pictures[:16], (16, 8, 8, 1)), pad=4)
      axis.imshow(sheet[4:-4, 4:-4], cmap='gray')
      axis.set(xticks=[], yticks=[])
      axis.spines[:].set_visible(False)
    row[0].set_title(left, fontsize=11, color='0.35')
    row[0].set_ylabel(label, fontsize=11)
  for axis, name in zip(axes[0, 1:], answers):
    axis.set_title(name, fontsize=15, color=STYLES[name]['color'], fontweight='bold')
  for axis, pictures in zip(axes[1, 1:], one.values()):
    axis.set_title(f'RMS of pixels: {rms(pictures):.2g}', fontsize=11, color='0.35')
  return figure
