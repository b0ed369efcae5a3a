"""The examples of the README run, its first screen is short, and it samples what it says."""

import re

import numpy as np
import pytest

from tests import ROOT

README = (ROOT / 'README.md').read_text()
EXAMPLES = re.findall(r'```python\n(.*?)```', README, re.S)


def _run(code):
  names = {}
  exec(compile(code, 'README.md', 'exec'), names)
  return names


def test_the_readme_has_at_most_120_lines_and_code_in_the_first_20():
  lines = README.splitlines()
  assert len(lines) <= 120
  assert next(n for n, line in enumerate(lines, 1) if line.startswith('```')) < 20


def test_the_first_example_samples_both_modes_and_ddim_is_remix():
  names = _run(EXAMPLES[0])   # it asserts the identity itself
  x, nearest = np.asarray(names['x']), np.array([[-2.0, 0.0], [2.0, 0.0]])
  right = x[:, 0] > 0
  assert 400 < right.sum() < 600
  offsets = x - nearest[right.astype(int)]
  # The modes have a standard deviation of 1/4.
  assert np.abs(offsets.mean(0)).max() < 0.05 and np.abs(offsets.std(0) - 0.25).max() < 0.05


# A quarter of the steps is enough for these bounds.
@pytest.mark.parametrize('steps', ['500', pytest.param('2_000', marks=pytest.mark.long)])
def test_the_training_example_samples_moons(steps):
  assert EXAMPLES[1].count('range(2_000)') == 1
  names = _run(EXAMPLES[1].replace('range(2_000)', f'range({steps})'))
  samples, data = np.asarray(names['samples']), np.asarray(names['data'])[:3_000]
  assert samples.shape == (1_000, 2)
  square = ((samples[:, None] - data) ** 2).sum(-1)
  nearest = np.sqrt(square.min(1))
  # 3,000 points of the moons lie about 0.02 from each other.
  assert nearest.mean() < 0.06, f'samples are {nearest.mean():.3f} from the nearest datum'
  both = np.mean(np.sqrt(square.min(0)) < 0.2)
  assert both > 0.95, f'only {both:.0%} of the data have a sample near'
