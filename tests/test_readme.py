"""The README's first example is a program, and learns what it says."""

import re

import numpy as np

from tests import ROOT

README = (ROOT / 'README.md').read_text()


def test_the_first_example_draws_moons():
  code = re.search(r'```python\n(.*?)```', README, re.S).group(1)
  names = {}
  exec(compile(code, 'README.md', 'exec'), names)
  samples, data = np.asarray(names['samples']), np.asarray(names['data'])[:3_000]
  assert samples.shape == (1_000, 2)
  square = ((samples[:, None] - data) ** 2).sum(-1)
  nearest = np.sqrt(square.min(1))
  # 3,000 points of the moons lie about 0.02 from each other.
  assert nearest.mean() < 0.06, f'samples are {nearest.mean():.3f} from the nearest datum'
  both = np.mean(np.sqrt(square.min(0)) < 0.2)
  assert both > 0.95, f'only {both:.0%} of the data have a sample near'
