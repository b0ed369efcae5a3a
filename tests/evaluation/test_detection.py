"""AUROC against its definition and scikit-learn."""

import numpy as np
from numpy.testing import assert_allclose
import pytest
from sklearn.metrics import roc_auc_score

from eqflow.evaluation import detection


def _pairs_won(inside, outside):
  wins = [(a < b) + (a == b) / 2 for a in inside for b in outside]
  return sum(wins) / len(wins)


def test_auroc_is_the_fraction_of_ordered_pairs_with_ties_halved():
  rng = np.random.default_rng(0)
  for n, m, levels in [(1, 1, 2), (7, 5, 3), (40, 60, 6), (50, 30, 10**6)]:
    inside, outside = rng.integers(0, levels, n) / 7, rng.integers(1, levels + 1, m) / 7
    found = detection.auroc(inside, outside)
    assert_allclose(found, _pairs_won(inside, outside), rtol=1e-14)
    assert_allclose(detection.auroc(outside, inside), 1 - found, rtol=1e-12)
    labels = np.repeat([0, 1], [n, m])
    assert_allclose(found, roc_auc_score(labels, np.concatenate([inside, outside])), rtol=1e-12)


def test_auroc_accepts_infinite_scores_and_rejects_empty_and_nan():
  assert detection.auroc(np.array([0.0, 1.0]), np.array([np.inf, 2.0])) == 1
  for inside, outside in [([], [1.0]), ([1.0], []), ([1.0], [np.nan])]:
    with pytest.raises(ValueError, match=r'scores, . of them NaN'):
      detection.auroc(np.array(inside), np.array(outside))
