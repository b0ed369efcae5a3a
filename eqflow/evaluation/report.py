"""Rows of numbers: one set of samples against the data, and the baselines to read them by."""

from collections.abc import Iterator
from typing import NamedTuple

from jaxtyping import Array, Float, Integer
import numpy as np

from eqflow.evaluation import baselines, distances, features

Records = Float[Array | np.ndarray, '_ ...']


class Summary(NamedTuple):
  """What a set of records is compared by. Computed once, it is compared with many sets."""
  pixels: distances.Moments
  random: distances.Moments
  manifold: distances.Manifold   # in pixels


def summary(x: Records) -> Summary:
  """The summary of images in [-1, 1] or vectors, x [n, ...]."""
  pixels = features.pixels(x)
  return Summary(distances.moments(pixels), distances.moments(features.random_features(x)),
                 distances.manifold(pixels, k=3))


def compare(real: Summary, fake: Summary) -> dict[str, float]:
  """Fréchet distances in pixels and in random features, precision and recall (k = 3, in pixels).

  Fréchet distances grow with fewer records: rows of one table need equally many. Raises ValueError
  where records have different shapes.
  """
  precision, recall = distances.precision_recall(real.manifold, fake.manifold)
  return {'frechet_pixels': distances.frechet_distance(real.pixels, fake.pixels),
          'frechet_random': distances.frechet_distance(real.random, fake.random),
          'precision': precision, 'recall': recall}


def compare_baselines(real: Summary, x: Records, label: Integer[Array | np.ndarray, '_'] | None = None,
                      *, seed: int = 0) -> Iterator[tuple[str, dict[str, float]]]:
  """(name, compare(real, its samples)) of each baseline of the data x [n, ...]; real is summary(x).

  Two halves are compared with each other, with half the records, so their distances are about four
  times the distances of the bootstrap. Gaussians are clipped to [-1, 1] if x is images. A Gaussian per
  class needs labels [n].
  """
  x = np.asarray(x)
  clip = x.ndim == 4
  yield 'two halves of the data', compare(*map(summary, baselines.halves(x, seed)))
  yield 'bootstrap of the data', compare(real, summary(baselines.bootstrap(x, seed)))
  if label is not None:
    fake = baselines.gaussian_per_class(x, label, seed, clip=clip)
    yield 'a Gaussian per class', compare(real, summary(fake))
  yield 'one Gaussian', compare(real, summary(baselines.gaussian(x, seed, clip=clip)))


def table(rows: dict[str, dict]) -> str:
  """{row: {column: number}} as an aligned markdown table, three significant digits.

  Columns keep the order in which rows first name them; a row without a column is blank there.
  """
  columns = list(dict.fromkeys(column for row in rows.values() for column in row))
  head = ['', *(column.replace('_', ' ') for column in columns)]
  body = [[name, *(_cell(row.get(column, '')) for column in columns)]
          for name, row in rows.items()]
  widths = [max(3, *(len(line[i]) for line in (head, *body))) for i in range(len(head))]
  rule = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])]
  return '\n'.join(_line(cells, widths) for cells in (head, rule, *body))


def _line(cells, widths):
  name, *numbers = cells
  padded = [name.ljust(widths[0]), *(c.rjust(w) for c, w in zip(numbers, widths[1:]))]
  return f'| {" | ".join(padded)} |'


def _cell(value):
  return f'{value:.3g}' if isinstance(value, (float, np.floating)) else str(value)
