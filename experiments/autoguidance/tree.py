"""Two classes that branch like trees: mixtures of Gaussians with a density in closed form."""

import functools

from jax.tree_util import Partial
import numpy as np

from eqflow import densities, fields, grids, guidance, outputs, processes, samplers
from eqflow.config.networks import classless
from eqflow.models.mlp import MLP
from experiments.fit import fit

PROCESS, OUTPUT = processes.linear, outputs.u
# Branches are thin, so most training times are near data.
DENSITY = densities.logit_normal(mean=-1.0, std=1.2)
DEPTH, PER_BRANCH = 4, 8
# Directions of the two trunks, from a common root.
TRUNKS = np.deg2rad([125.0, 55.0])
# The weak network has a quarter of the width and an eighth of the training.
STRONG = dict(width=128, depth=4, num_steps=10_000)
WEAK = dict(width=32, depth=4, num_steps=1_250)


@functools.cache
def mixture(label: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(means [k, 2], stds [k], weights [k]) of a tree: every branch splits into two, each .65 as long."""
  means, stds, weights = [], [], []

  def grow(root, angle, length, weight, depth):
    tip = root + length * np.array([np.cos(angle), np.sin(angle)])
    along = (np.arange(PER_BRANCH) + 0.5) / PER_BRANCH
    means.append(root + along[:, None] * (tip - root))
    stds.append(np.full(PER_BRANCH, 0.06 * length))
    weights.append(np.full(PER_BRANCH, weight / PER_BRANCH))
    if depth:
      for turn in (-0.6, 0.45):
        grow(tip, angle + turn, 0.65 * length, 0.55 * weight, depth - 1)

  grow(np.array([0.0, -1.3]), TRUNKS[label], 1.0, 1.0, DEPTH)
  weights = np.concatenate(weights)
  return np.concatenate(means), np.concatenate(stds), weights / weights.sum()


def points(label: int, n: int, seed: int) -> np.ndarray:
  """n points [n, 2] of a class."""
  means, stds, weights = mixture(label)
  rng = np.random.default_rng([seed, label])
  k = rng.choice(len(weights), n, p=weights)
  return (means[k] + stds[k, None] * rng.standard_normal((n, 2))).astype(np.float32)


def log_density(x: np.ndarray, label: int) -> np.ndarray:
  """log p(x | label) [n]."""
  means, stds, weights = mixture(label)
  parts = []
  for some in np.array_split(np.asarray(x, np.float64), max(1, len(x) // 500)):
    square = np.square(some[:, None] - means).sum(-1) / (2 * stds**2)
    terms = np.log(weights / (2 * np.pi * stds**2)) - square
    most = terms.max(1, keepdims=True)
    parts.append(most[:, 0] + np.log(np.exp(terms - most).sum(1)))
  return np.concatenate(parts)


def networks() -> dict[str, fields.Network]:
  """{'strong', 'weak': class-conditional, 'unconditional'}, trained on the same 200,000 points."""
  x = np.concatenate([points(label, 100_000, seed=0) for label in (0, 1)])
  label = np.repeat(np.arange(2, dtype=np.int32), 100_000)

  def train(width, depth, num_steps, classes=2):
    model = MLP(width=width, depth=depth, num_classes=classes)
    return fit(model, x, process=PROCESS, output=OUTPUT, density=DENSITY, batch=1024,
               num_steps=num_steps, label=label if classes else None)[0]

  unconditional = train(**STRONG, classes=0)
  return {'strong': train(**STRONG), 'weak': train(**WEAK),
          'unconditional': Partial(classless, network=unconditional)}


def sampled(network: fields.Network, other: fields.Network, scale: float, *,
            n: int = 4_000) -> np.ndarray:
  """n samples of class 0 by `network`, guided away from `other` with that scale."""
  label = np.zeros(n, np.int32)
  predict = guidance.autoguided(fields.bind(network, label), fields.bind(other, label), scale=scale)
  z = np.random.default_rng(1).standard_normal((n, 2)).astype(np.float32)
  return np.asarray(samplers.sample(samplers.heun(PROCESS, OUTPUT), predict, z,
                                    grids.uniform(40)))
