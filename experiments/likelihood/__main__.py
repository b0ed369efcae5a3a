"""The error of the likelihood in nats on a mixture, and the digits in bits per dimension.

  python -m experiments.likelihood            the mixture: every process, every output
  python -m experiments.likelihood --digits   a trained flow on the digits; train it first with
      python -m eqflow.main --config=configs/digits.py:flow --workdir=runs/digits_flow
"""

import argparse
import pathlib

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np
from scipy import stats

from configs import digits
from eqflow import fields, likelihood, oracles, outputs
from eqflow.data import pipeline
from eqflow.runs import dataset, restore
from eqflow.runs.run import run_of
from experiments import ROOT
from tests import rows

MEANS, STDS, WEIGHTS = np.array([[-1.2], [0.9]]), np.array([0.35, 0.5]), np.array([0.4, 0.6])
MEAN = float(WEIGHTS @ MEANS[:, 0])
STD = float(np.sqrt(WEIGHTS @ (MEANS[:, 0] ** 2 + STDS**2) - MEAN**2))
X = np.linspace(-2.4, 2.5, 99)[:, None]
LOG_P = np.log(sum(w * stats.norm.pdf(X[:, 0], m, s) for w, m, s in zip(WEIGHTS, MEANS[:, 0], STDS)))
# 17 levels from -1 to 1.
DIGITS_BIN = 2 / 16


def mixture_error(name, output, times):
  """(largest error in nats, largest number of evaluations) over X."""
  process = rows.PROCESSES[name]
  predict = Partial(oracles.mixture, process=process, output=output, means=MEANS, stds=STDS,
                    weights=WEIGHTS)
  found, latent = likelihood.log_likelihood(predict, jnp.asarray(X), process=process, output=output,
                                            times=times, mean=MEAN, std=STD)
  return abs(np.asarray(found) - LOG_P).max(), int(latent.evaluations.max())


def mixture_table():
  names = ['u', 'v', 'x', 'edm', 'displacement', 'equilibrium_truncated', 'eps', 'score']
  print('| process | times | ' + ' | '.join(names) + ' | evaluations |')
  print('|---' * (len(names) + 3) + '|')
  # On a table of discrete times u has kinks: transport the network to another process.
  for name in (name for name in rows.PROCESSES if name != 'discrete'):
    cells, most, ends = [], 0, set()
    for key in names:
      end = 80.0 if name == 'edm' else 1.0
      alpha = float(rows.PROCESSES[name](jnp.asarray(end)).x)
      # eps and the score are blind where alpha = 0.
      times = (1e-5, 0.9999 if key in ('eps', 'score') and alpha == 0 else end)
      error, count = mixture_error(name, rows.OUTPUTS[key], times)
      cells.append(f'{error:.1e}')
      most, ends = max(most, count), ends | {times[1]}
    print(f'| {name} | 1e-5 to {" or ".join(f"{end:g}" for end in sorted(ends))} | '
          + ' | '.join(cells) + f' | {most} |', flush=True)


def bits_of_digits(workdir, count):
  """Bits per dimension of dequantized digits under a trained class-conditional flow."""
  config = digits.get_config('flow').lock()
  _, model = restore.restore(run_of(config, workdir))
  x, label = pipeline.arrays(dataset.open_source(config))
  print(f'uniform over 17 levels: {np.log2(17):.3f} bits; a histogram for each pixel: '
        f'{_pixelwise(x):.3f}\n')
  image = np.rint((x[:count] + 1) * 127.5).astype(np.uint8)
  keys = lambda seed: jax.random.split(jax.random.key(seed), count)
  x = likelihood.dequantize(keys(0), image, bin_width=DIGITS_BIN)
  predict = fields.bind(model.network(model.params), jnp.asarray(label[:count]))

  print('| start t | divergence | bits per dimension | evaluations |\n|---|---|---|---|')
  one, many = dict(keys=keys(1)), dict(keys=keys(2), num_probes=16)
  for start, name, probes in ((0.001, '1 probe', one), (0.01, '1 probe', one), (0.03, '1 probe', one),
                              (0.05, '1 probe', one), (0.08, '1 probe', one), (0.05, '16 probes', many),
                              (0.05, 'exact', {})):
    log_p, latent = likelihood.log_likelihood(
        predict, x, process=rows.PROCESSES['linear'], output=outputs.u, times=(start, 1.0),
        rtol=1e-4, atol=1e-4, **probes)
    bits = np.asarray(likelihood.bits_per_dimension(log_p, 64, bin_width=DIGITS_BIN))
    evaluations = np.asarray(latent.evaluations).mean()
    print(f'| {start} | {name} | {bits.mean():.3f} ± {bits.std() / np.sqrt(count):.3f} | '
          f'{evaluations:.0f} |', flush=True)


def _pixelwise(x):
  """The mean over pixels of the entropy of a pixel's level, in bits."""
  level = np.rint((x.reshape(len(x), -1) + 1) * 8).astype(int)
  p = np.stack([np.bincount(column, minlength=17) for column in level.T]) / len(x)
  return -np.sum(p * np.log2(np.where(p > 0, p, 1)), 1).mean()


def main():
  flags = argparse.ArgumentParser()
  flags.add_argument('--digits', action='store_true')
  flags.add_argument('--workdir', type=pathlib.Path, default=ROOT / 'runs/digits_flow')
  flags.add_argument('--count', type=int, default=64)
  given = flags.parse_args()
  if given.digits:
    bits_of_digits(given.workdir, given.count)
    return
  with jax.enable_x64(True):
    print('float64\n')
    mixture_table()
  print('\nfloat32\n')
  mixture_table()


if __name__ == '__main__':
  main()
