"""A small convolutional classifier of Fashion-MNIST; samples are compared in its features.

  python -m experiments.equilibrium_matching.classifier     trains it if needed, prints its accuracy

A Fréchet distance in its last hidden layer [n, 64] is not an FID: compare it only with distances in
features of the same weights. The weights are trained from a fixed seed and stored in runs/; their test
accuracy is stored with the results.
"""

import functools

from flax import linen as nn
from flax import serialization
import jax
from jax import numpy as jnp
import numpy as np
import optax

from eqflow import files
from eqflow.data import pipeline
from eqflow.runs import dataset
from experiments.equilibrium_matching import models, results

FOLDER = models.RUNS / 'equilibrium_matching/classifier'
ACCURACY = results.FOLDER / 'fashion_mnist/classifier.json'
EPOCHS, BATCH, RATE = 3, 128, 2e-3


class Classifier(nn.Module):
  """x [b, 28, 28, 1] -> (features [b, 64], logits [b, 10])."""

  @nn.compact
  def __call__(self, x):
    for width in (16, 32, 64):
      x = nn.relu(nn.Conv(width, (3, 3), strides=2)(x))
    x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
    return x, nn.Dense(10)(x)


def features(x: np.ndarray) -> np.ndarray:
  """The last hidden layer [n, 64] of the classifier, images x [n, 28, 28, 1] in [-1, 1]."""
  return np.concatenate([np.asarray(_apply(trained(), x[i:i + 500])[0])
                         for i in range(0, len(x), 500)])


@functools.cache
def trained():
  """The parameters; trained in one or two minutes and stored if they do not exist yet."""
  path = FOLDER / 'params.msgpack'
  start = Classifier().init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
  if path.exists():
    return serialization.from_bytes(start, path.read_bytes())
  params = _fit(start, *_split('train'))
  x, label = _split('test')
  right = np.concatenate([np.asarray(_apply(params, x[i:i + 500])[1]).argmax(1)
                          for i in range(0, len(x), 500)]) == label
  results.write(ACCURACY, {'test accuracy': float(right.mean())})
  FOLDER.mkdir(parents=True, exist_ok=True)
  with files.replacing(path) as file:
    file.write(serialization.to_bytes(params))
  return params


def _split(split):
  return pipeline.arrays(dataset.open_source(models.config_of('fashion_mnist', 'eqm', 0), split=split))


_apply = jax.jit(Classifier().apply)


def _fit(params, x, label):
  optimizer = optax.adam(optax.cosine_decay_schedule(RATE, EPOCHS * (len(x) // BATCH)))

  @jax.jit
  def step(params, state, x, label):
    def loss(params):
      logits = Classifier().apply(params, x)[1]
      return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
    updates, state = optimizer.update(jax.grad(loss)(params), state)
    return optax.apply_updates(params, updates), state

  state, rng = optimizer.init(params), np.random.RandomState(0)
  for _ in range(EPOCHS):
    order = rng.permutation(len(x))
    for i in range(0, len(x) - BATCH + 1, BATCH):
      rows = order[i:i + BATCH]
      params, state = step(params, state, x[rows], label[rows])
  return params


if __name__ == '__main__':
  trained()
  print(ACCURACY.read_text())
