"""How long the rows of an evaluation take, without sampling, and whether they are the stored numbers.

  python -m experiments.speed.evaluation [--only=32x32x3]

results/evaluation.json has the numbers of the program before 2026-11-30, which factored every set.
CPU seconds include threads of BLAS that wait for each other.
"""

import argparse
import json
import pathlib
import time

import numpy as np

from configs import digits
from eqflow.data import pipeline
from eqflow.evaluation import report
from eqflow.runs import dataset

STORED = pathlib.Path(__file__).parent / 'results' / 'evaluation.json'
COUNT = 1_797


def photographs(seed: int, modes: int = 32 * 32) -> np.ndarray:
  """float32 [n, 32, 32, 3] in [-1, 1], their spectrum as of photographs: 1 / frequency^1.2.

  Only the `modes` strongest frequencies: few of them give a singular covariance.
  """
  rng = np.random.default_rng(seed)
  frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(32), np.fft.fftfreq(32), indexing='ij'))
  strength = 1 / np.maximum(frequency, 1 / 32)**1.2
  strength[frequency > np.sort(frequency, axis=None)[modes - 1]] = 0
  noise = np.fft.fft2(rng.standard_normal((COUNT, 32, 32, 3)), axes=(1, 2))
  x = np.real(np.fft.ifft2(noise * strength[:, :, None], axes=(1, 2)))
  return (x / np.abs(x).max()).astype(np.float32)


def sets() -> dict[str, tuple]:
  """{name: (samples, data, labels)}."""
  x, label = pipeline.arrays(dataset.open_source(digits.get_config()))
  number = np.arange(COUNT) % 10
  return {'digits, 8x8x1': (x[:, :, ::-1], x, label),
          '32x32x3': (photographs(1), photographs(0), number),
          '32x32x3, covariance of rank 111': (photographs(1, 37), photographs(0, 37), number)}


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--only', default='', help='part of a name')
  given, stored = parser.parse_args(), json.loads(STORED.read_text())
  for name, (fake, x, label) in sets().items():
    if given.only in name:
      wall, cpu = time.perf_counter(), time.process_time()
      rows = dict(report.compare_all({'samples': fake}, x, label))
      print(f'{name}: {time.perf_counter() - wall:.1f} s, {time.process_time() - cpu:.1f} s of CPU, '
            f'differs from stored numbers by {difference(rows, stored[name]):.1e}', flush=True)


def difference(rows: dict, stored: dict) -> float:
  """The largest |a - b| / max(|b|, 1) over all numbers."""
  return max(abs(value - stored[row][column]) / max(abs(stored[row][column]), 1)
             for row, numbers in rows.items() for column, value in numbers.items())


if __name__ == '__main__':
  main()
