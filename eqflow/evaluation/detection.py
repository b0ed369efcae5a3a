"""How well a score tells inputs that lie outside from those inside."""

from jaxtyping import Array, Num
import numpy as np

Scores = Num[Array | np.ndarray, 'n']
OtherScores = Num[Array | np.ndarray, 'm']


def auroc(inside: Scores, outside: OtherScores) -> float:
  """P(inside < outside) + P(inside = outside)/2 over all pairs: 1/2 for a score that says nothing.

  The area under the curve of true over false positives, as the rank statistic of Mann and Whitney;
  in float64, exact with ties, n log n. Infinite scores count as such. Raises ValueError where either
  has no scores, or one is NaN.
  """
  inside, outside = (np.asarray(a, np.float64) for a in (inside, outside))
  for name, scores in (('inside', inside), ('outside', outside)):
    if not len(scores) or np.isnan(scores).any():
      raise ValueError(f'{name} has {len(scores)} scores, {np.isnan(scores).sum()} of them NaN: give '
                       'at least one, and find the inputs whose scores are NaN')
  inside = np.sort(inside)
  below, up_to = (np.searchsorted(inside, outside, side) for side in ('left', 'right'))
  return float((below.sum() + up_to.sum()) / (2 * len(inside) * len(outside)))
