"""What is told of samples that stopped one by one."""

from ml_collections import ConfigDict
import numpy as np

from eqflow import sample


def test_the_histogram_of_steps_counts_every_sample():
  config = ConfigDict(dict(sample=dict(threshold=3.5)))
  evaluations = np.random.default_rng(0).integers(80, 181, 1_000)
  lines = sample.steps_taken(config, evaluations).splitlines()
  found = [line.replace(' to ', ' ').split() for line in lines]
  assert sum(int(count.replace(',', '')) for _, _, _, count, *_ in found) == 1_000
  for low, high, _, count, *_ in found:
    within = (evaluations >= int(low)) & (evaluations <= int(high))
    assert int(count.replace(',', '')) == within.sum(), f'{low} to {high} evaluations'
  assert [int(low) for low, *_ in found[1:]] == [int(high) + 1 for _, high, *_ in found[:-1]]
  assert sample.steps_taken(config, np.full(9, 7)).split()[:4] == ['7', 'to', '7', 'evaluations']


def test_there_is_no_histogram_where_nothing_stops():
  assert not sample.steps_taken(ConfigDict(dict(sample=dict(threshold=0.0))), np.full(9, 130))
