"""Every experiment imports, is in the status table and shows its pictures; the tree and the widths."""

import importlib
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from experiments.autoguidance import tree
from experiments.posthoc_ema import figures, quality
from tests import ROOT

# These need torch and diffusers.
PEERS = 'experiments.speed.peers', 'experiments.speed.torch_dit'
MODULES = sorted('.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')
                 for path in (ROOT / 'experiments').rglob('*.py'))


@pytest.mark.parametrize('name', [name for name in MODULES if name not in PEERS])
def test_module_imports(name):
  importlib.import_module(name)


@pytest.mark.long
@pytest.mark.parametrize('name', ['laws', 'solvers', 'posthoc_ema.profiles', 'posthoc_ema.layers'])
def test_printed_table_has_no_nan(name):
  run = subprocess.run([sys.executable, '-m', f'experiments.{name}'], cwd=ROOT, capture_output=True,
                       text=True, env={**os.environ, 'JAX_PLATFORMS': 'cpu'})
  assert run.returncode == 0, run.stderr[-4000:]
  assert run.stdout.count('|') > 20 and 'nan' not in run.stdout


def test_every_experiment_is_in_the_status_table_and_has_a_readme():
  table = (ROOT / 'experiments/README.md').read_text()
  folders = {name.split('.')[1] for name in MODULES if name.count('.') > 1}
  assert not folders - set(re.findall(r'experiments\.(\w+)', table))
  assert not [name for name in folders if not (ROOT / f'experiments/{name}/README.md').exists()]


@pytest.mark.parametrize('folder', ['docs', 'experiments'])
def test_every_picture_is_shown(folder):
  pages = [*ROOT.glob('*.md'), *(ROOT / 'docs').glob('*.md'), *(ROOT / 'experiments').rglob('*.md')]
  text = '\n'.join(page.read_text() for page in pages)
  pictures = [path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob('*.png')]
  shown = [f'{path.parent.name}/{path.name}' if len(path.parts) > 1 else path.name for path in pictures]
  assert pictures and not [name for name in shown if name not in text]


@pytest.mark.long
def test_tree_density_matches_its_points():
  # On a grid finer than the thinnest branch: the density sums to 1 and has the points' moments.
  side = np.linspace(-3, 3, 751)
  grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
  inside = grid[(abs(grid) < 2.2).all(1)]
  mass = np.exp(tree.log_density(inside, 0)) * (side[1] - side[0]) ** 2
  np.testing.assert_allclose(mass.sum(), 1, atol=1e-3)
  x = tree.points(0, 20_000, seed=3)
  np.testing.assert_allclose(mass @ inside, x.mean(0), atol=0.02)
  np.testing.assert_allclose(mass @ inside**2, np.square(x).mean(0), atol=0.02)


@pytest.mark.parametrize('data', quality.DATA)
def test_snapshots_are_written_at_half_and_at_the_end_of_a_run(data):
  *_, examples, rates = quality.DATA[data]
  config = quality.config_of(data, rates[0], 0)
  every = config.ema.snapshot_examples
  assert every % config.train.batch == 0, 'snapshots are written after whole batches'
  assert examples % every == 0 and (examples // 2) % every == 0


def test_all_stored_distances_are_drawn():
  found = figures.curves('digits')
  *_, examples, rates = quality.DATA['digits']
  assert set(found) == {(rate, n) for rate in rates for n in (examples // 2, examples)}
  assert all(rows.shape == (len(quality.SEEDS), len(quality.STDS)) for rows in found.values())
  figure = figures.draw(found)
  assert len(figure.axes[0].lines) == 2 * len(found), 'a curve and its minimum each'
