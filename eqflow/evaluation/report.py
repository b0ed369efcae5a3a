"""Rows of numbers: one set of samples against the data, and the baselines beside it."""

from jaxtyping import Array, Float, Integer
import numpy as np

from eqflow.evaluation import baselines, distances, features

Records = Float[Array | np.ndarray, '_ ...']


def compare(real: Records, fake: Records) -> dict[str, float]:
  """Fréchet distances in pixels and in random features, precision and recall (k = 3, in pixels).

  real [n, ...] and fake [m, ...] are images in [-1, 1] or vectors. Fréchet distances grow with
  fewer records: rows of one table need the same n and m. Raises ValueError where shapes differ.
  """
  if real.shape[1:] != fake.shape[1:]:
    raise ValueError(f'real records have the shape {real.shape[1:]}, fake {fake.shape[1:]}: '
                     'they must be equal')
  spaces = {'frechet_pixels': features.pixels, 'frechet_random': features.random_features}
  row = {name: distances.frechet_distance(*(distances.moments(space(x)) for x in (real, fake)))
         for name, space in spaces.items()}
  precision, recall = distances.precision_recall(features.pixels(real), features.pixels(fake))
  return row | {'precision': precision, 'recall': recall}


def compare_baselines(x: Records, label: Integer[Array | np.ndarray, '_'] | None = None, *,
                      seed: int = 0) -> dict[str, dict[str, float]]:
  """The rows of data x [n, ...] itself: name of a baseline -> compare(x, its samples).

  Two halves are compared with each other, so with half the records: their distances are about
  four times those of the bootstrap. Gaussians are clipped to [-1, 1] where x is images. Without
  labels [n] there is no Gaussian per class.
  """
  x = np.asarray(x)
  clip = x.ndim == 4
  rows = {'two halves of the data': compare(*baselines.halves(x, seed)),
          'bootstrap of the data': compare(x, baselines.bootstrap(x, seed))}
  if label is not None:
    fake = baselines.gaussian_per_class(x, label, seed, clip=clip)
    rows['a Gaussian per class'] = compare(x, fake)
  rows['one Gaussian'] = compare(x, baselines.gaussian(x, seed, clip=clip))
  return rows


def table(rows: dict[str, dict]) -> str:
  """{row: {column: number}} as an aligned markdown table, three significant digits.

  Columns stand in the order in which rows first name them; a row without a column is blank there.
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
