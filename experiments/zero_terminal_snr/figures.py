"""What a leaking noise table cannot generate: exact for plain images, a network for shaded digits."""

from typing import Any

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from matplotlib import pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from eqflow import densities, oracles, outputs, processes, samplers
from eqflow.evaluation import images
from eqflow.models.mlp import MLP
from eqflow.processes import tables
from experiments import colours
from experiments.fit import fit

SIDE = 64
COLOURS = {'data': '0.45', 'leaking': colours.RED, 'rescaled': colours.BLUE}


def process_of(table: Any) -> Partial:
  """The process through a table of alpha_bar."""
  return Partial(processes.discrete, angles=processes.table_angles(table))


# Stable Diffusion's table as it is, and with its last alpha moved to 0.
LEAKING = process_of(tables.scaled_linear())
RESCALED = process_of(tables.zero_terminal_snr(tables.scaled_linear()))
PROCESSES = {'leaking': LEAKING, 'rescaled': RESCALED}


def recovered(alpha: Any, std: float, side: Any) -> np.ndarray:
  """1/sqrt(sigma^2 + alpha^2 d std^2), d = side^2: the fraction of the spread that is recovered."""
  return 1 / np.sqrt(1 - alpha**2 + alpha**2 * np.square(side) * std**2)


def plain_brightness(process: Any, grid: Any, *, low: float = -1.0, n: int = 1024) -> np.ndarray:
  """Brightness [n] of samples of the exact model of plain images, uniform in [low, 1].

  A plain image of d = SIDE^2 pixels is its brightness times sqrt(d) along one unit vector, and 0
  along all others, so one coordinate is enough.
  """
  data = SIDE * jnp.linspace(low, 1.0, 201)[:, None]
  predict = Partial(oracles.finite, process=process, output=outputs.x, data=data)
  noise = jax.random.normal(jax.random.key(5), (n, 1))
  solver = samplers.ddim(process, outputs.x)
  return np.asarray(samplers.sample(solver, predict, noise, grid))[:, 0] / SIDE


def shaded_digits(copies: int = 2, seed: int = 0) -> jax.Array:
  """Digits [n, SIDE^2] on paper of a shade uniform in [-1, 1]; the ink is 1/2 closer to grey."""
  ink = jnp.tile(jnp.asarray(load_digits().images / 16, jnp.float32), (copies, 1, 1))
  ink = jax.image.resize(ink, (len(ink), SIDE, SIDE), 'linear').reshape(len(ink), -1)
  paper = jax.random.uniform(jax.random.key(seed), (len(ink), 1), minval=-1.0)
  return paper - 0.5 * jnp.sign(paper) * ink


def train(x: jax.Array, num_steps: int) -> dict[str, Any]:
  """{name: predict}: the same network on both processes, predicting x, which is not blind at noise."""
  return {name: fit(MLP(width=256, depth=3), x, process=process, output=outputs.x,
                    density=densities.uniform, num_steps=num_steps, batch=64, rate=2e-3)[0]
          for name, process in PROCESSES.items()}


def generated(predicts: dict[str, Any], grid: Any, *, n: int = 512) -> dict[str, np.ndarray]:
  """{name: x [n, SIDE^2]}: samples of DDIM along the grid, from the same noise for both."""
  noise = jax.random.normal(jax.random.key(5), (n, SIDE**2))
  return {name: np.asarray(samplers.sample(
      samplers.ddim(PROCESSES[name], outputs.x), predict, noise, grid))
      for name, predict in predicts.items()}


def brightness(x: Any) -> np.ndarray:
  """The mean over the pixels of each image."""
  return np.asarray(x).mean(1)


def draw_tables() -> plt.Figure:
  """alpha near pure noise by table, and the recovered fraction of the spread by resolution."""
  figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout='constrained')
  t = np.linspace(0.0, 1.0, 1001)
  for name, process in PROCESSES.items():
    left.plot(t, process(jnp.asarray(t)).x, color=COLOURS[name], linewidth=2, label=name)
  left.set(title="alpha of Stable Diffusion's table", xlabel='t   (data to noise)', ylabel='alpha',
           xlim=(0.7, 1), ylim=(0, 0.4))
  left.legend(frameon=False)
  side = np.geomspace(4, 512, 200)
  for name, table, colour, dash in (
      ('Stable Diffusion', tables.scaled_linear(), COLOURS['leaking'], '-'),
      ('DDPM, linear', tables.linear(), colours.GREEN, (0, (5, 2))),
      ('rescaled', tables.zero_terminal_snr(tables.scaled_linear()), COLOURS['rescaled'], '-'),
      ('improved DDPM, cosine', tables.cosine(), colours.ORANGE, (0, (1, 2)))):
    right.plot(side, recovered(table[-1] ** 0.5, 0.5, side), color=colour, linestyle=dash,
               linewidth=2, label=name)
  right.set(title='recovered spread of brightness (std 0.5)', ylabel='fraction',
            xlabel='side of the image in pixels', xscale='log', ylim=(0, 1.05),
            xticks=[4, 8, 16, 32, 64, 128, 256, 512])
  right.set_xticklabels([4, 8, 16, 32, 64, 128, 256, 512])
  right.minorticks_off()
  right.legend(frameon=False, loc='lower left')
  for axis in (left, right):
    axis.grid(alpha=0.25)
  return figure


def draw_histograms(made: dict[str, Any]) -> plt.Figure:
  """Histograms of {name: brightness}, the data first."""
  figure, axes = plt.subplots(1, 3, figsize=(10, 2.4), layout='constrained')
  for axis, (name, values) in zip(axes, made.items()):
    _histogram(axis, name, values, made['data'])
    axis.set_title(name, color=COLOURS[name], fontweight='bold')
  axes[0].set_ylabel('density')
  return figure


def draw_samples(made: dict[str, Any]) -> plt.Figure:
  """Images of {name: x [n, SIDE^2]} above histograms of their brightness, the data first."""
  figure, axes = plt.subplots(2, 3, figsize=(10, 4.6), layout='constrained',
                              gridspec_kw=dict(height_ratios=(2.1, 1)))
  figure.get_layout_engine().set(wspace=0.06)
  titles = {'data': 'data', 'leaking': '7 % of the image left in "noise"',
            'rescaled': 'zero terminal SNR'}
  for (above, below), (name, x) in zip(axes.T, made.items()):
    sheet = images.grid(np.reshape(x[:24], (24, SIDE, SIDE, 1)), columns=6, pad=6)
    above.imshow(sheet[6:-6, 6:-6, 0], cmap='gray', vmin=0, vmax=255)
    above.set(xticks=[], yticks=[])
    above.spines[:].set_visible(False)
    above.set_title(titles[name], color=COLOURS[name], fontweight='bold', fontsize=13)
    _histogram(below, name, brightness(x), brightness(made['data']))
  axes[1, 0].set_ylabel('density')
  return figure


def _histogram(axis, name, values, data):
  bins = np.linspace(-1.125, 1.125, 37)  # 1, the end of the shades, is an edge.
  axis.hist(values, bins, density=True, color=COLOURS[name], alpha=0.85)
  axis.hist(data, bins, density=True, histtype='step', color='0.3', linewidth=1)
  axis.set(xlabel='mean brightness of an image', yticks=[0, 1, 2], xlim=(-1.125, 1.125), ylim=(0, 2.3))
  axis.spines[['top', 'right']].set_visible(False)
  if name != 'data':
    axis.text(0.02, 0.92, 'outline: data', transform=axis.transAxes, va='top', color='0.3')
  axis.text(0.98, 0.92, f'std {np.std(values):.2f}', transform=axis.transAxes, ha='right', va='top',
            color='0.3')
