"""How well a score separates inputs outside the distribution from inputs inside."""

from __future__ import annotations

from jaxtyping import Array, Num
import numpy as np

Scores = Num[Array | np.ndarray, 'n']
OtherScores = Num[Array | np.ndarray, 'm']


def auroc(inside: Scores, outside: OtherScores) -> float:
  """P(inside < outside) + P(inside = outside)/2 over all pairs: 1/2 for an uninformative score.

  The area under the ROC curve as the rank statistic of Mann and Whitney, in float64, in O(n log n).
  Scores may be tied or infinite. Raises ValueError if either has no scores, or a NaN.
  """
  inside, outside = (np.asarray(a, np.float64) for a in (inside, outside))
  for name, scores in (('inside', inside), ('outside', outside)):
    if not len(scores) or np.isnan(scores).any():
      raise ValueError(f'{name} has {len(scores)} scores, {np.isnan(scores).sum()} of them NaN: give '
                       'at least one score, and no NaN')
  inside = np.sort(inside)
  below, up_to = (np.searchsorted(inside, outside, side) for side in ('left', 'right'))
  return float((below.sum() + up_to.sum()) / (2 * len(inside) * len(outside)))
