"""Rows of numbers: one set of samples against the data, and the baselines to read them by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent import futures
import functools
import os
from typing import NamedTuple

from jaxtyping import Array, Float, Integer
import numpy as np
import threadpoolctl

from eqflow.evaluation import baselines, distances, features

Records = Float[Array | np.ndarray, '_ ...']
# What `compare` measures, for readers of its numbers.
LEGEND = ('frechet: the squared distance of Gaussians fitted to samples and data, 0 at best; precision,'
          ' recall: fractions of samples near data and of data near samples, in pixels, 1 at best')
# The most rows that are computed at a time, and the elements of their records.
_WORKERS, _ELEMENTS = 4, 2**28


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


def compare_all(samples: Mapping[str, Records], x: Records,
                label: Integer[Array | np.ndarray, '_'] | None = None, *,
                seed: int = 0) -> Iterator[tuple[str, dict[str, float]]]:
  """(name, numbers) of each set of samples and of each baseline, against the data x [n, ...].

  Each is yielded when it is computed, in this order. Two halves are compared with each other, with half
  the records, so their distances are about four times the distances of the bootstrap. Gaussians are
  clipped to [-1, 1] if x is images. A Gaussian per class needs labels [n].
  """
  x, cores = np.asarray(x), os.cpu_count() or 1
  clip, compared = x.ndim == 4, lambda fake: compare(real, summary(fake))
  made = {name: functools.partial(compared, fake) for name, fake in samples.items()}
  made['two halves of the data'] = lambda: compare(*map(summary, baselines.halves(x, seed)))
  made['bootstrap of the data'] = lambda: compared(baselines.bootstrap(x, seed))
  if label is not None:
    made['a Gaussian per class'] = lambda: compared(
        baselines.gaussian_per_class(x, label, seed, clip=clip))
  made['one Gaussian'] = lambda: compared(baselines.gaussian(x, seed, clip=clip))
  workers = max(1, min(_WORKERS, cores, _ELEMENTS // x.size))
  # The threads of BLAS wait for each other at every product. Rows share nothing but `real`.
  with threadpoolctl.threadpool_limits(cores // workers, 'blas'), \
       futures.ThreadPoolExecutor(workers) as pool:
    real = summary(x)
    try:
      yield from zip(made, pool.map(lambda row: row(), made.values()))
    finally:
      pool.shutdown(cancel_futures=True)


def table(rows: dict[str, dict], *, head: bool = True, least: int = 3) -> str:
  """{row: {column: number}} as an aligned markdown table, three significant digits.

  Columns keep the order in which rows first name them; a row without a column is blank there. To print
  rows as they come: all but the first without a head, and all names with `least` characters.
  """
  columns = list(dict.fromkeys(column for row in rows.values() for column in row))
  titles = ['', *(column.replace('_', ' ') for column in columns)]
  body = [[name, *(_cell(row.get(column, '')) for column in columns)]
          for name, row in rows.items()]
  widths = [max(3, *(len(line[i]) for line in (titles, *body))) for i in range(len(titles))]
  widths[0] = max(widths[0], least)
  rule = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])]
  return '\n'.join(_line(cells, widths) for cells in ((titles, rule, *body) if head else body))


def _line(cells, widths):
  name, *numbers = cells
  padded = [name.ljust(widths[0]), *(c.rjust(w) for c, w in zip(numbers, widths[1:]))]
  return f'| {" | ".join(padded)} |'


def _cell(value):
  return f'{value:.3g}' if isinstance(value, (float, np.floating)) else str(value)
