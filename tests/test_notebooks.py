"""Every notebook in colabs/ has no outputs, opens in Colab and runs from the first cell to the last."""

import os
import subprocess
import sys
import types

import nbformat
import pytest

from tests import ROOT

NOTEBOOKS = sorted((ROOT / 'colabs').glob('*.ipynb'))
REPOSITORY = 'https://github.com/eqflow/eqflow'
COLAB = REPOSITORY.replace('https://github.com', 'https://colab.research.google.com/github')
# The first code cell of every notebook: change the address or the installation here first.
SETUP = f"""\
import os
import subprocess
import sys

if 'google.colab' in sys.modules and not os.path.exists('colabs'):
  subprocess.run(['git', 'clone', '--depth=1', '{REPOSITORY}'], check=True)
  os.chdir('eqflow')
  subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', '.[train]'], check=True)
elif os.path.basename(os.getcwd()) == 'colabs':
  os.chdir('..')  # Jupyter starts in the notebook's folder; experiments and configs are above it."""

# Runs the cells in one namespace, as a kernel does, and prints the number of a cell that fails. A run
# without EQFLOW_FAST also renders the pictures. A real kernel sometimes hangs on a busy machine.
RUNNER = """
import json, os, sys
cells = json.load(open(sys.argv[1]))['cells']
names = {'__name__': '__main__'}
for number, cell in enumerate(cells):
  if cell['cell_type'] == 'code':
    source = ''.join(cell['source'])
    try:
      exec(compile(source, f'cell {number}', 'exec'), names)
      plt = sys.modules.get('matplotlib.pyplot')
      if plt and 'EQFLOW_FAST' not in os.environ:
        for figure in map(plt.figure, plt.get_fignums()):
          figure.canvas.draw()
        plt.close('all')
    except BaseException:
      print(f'cell {number} of {sys.argv[1]} fails:', source, '', sep='\\n', file=sys.stderr)
      raise
"""

each = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)


def _code(path):
  notebook = nbformat.read(path, as_version=4)
  return [cell.source for cell in notebook.cells if cell.cell_type == 'code']


def _run(path, **more):
  kept = {name: value for name, value in os.environ.items() if name not in ('EQFLOW_FAST', 'XLA_FLAGS')}
  run = subprocess.run(
      [sys.executable, '-c', RUNNER, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=600,
      env={**kept, 'JAX_PLATFORMS': 'cpu', 'MPLBACKEND': 'Agg', **more})
  assert run.returncode == 0, run.stderr[-6000:]


def test_there_are_notebooks():
  assert NOTEBOOKS


@each
def test_notebook_is_valid_and_has_no_outputs(path):
  notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
  nbformat.validate(notebook)
  assert (notebook.nbformat, notebook.metadata.kernelspec.name) == (4, 'python3')
  assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
  for number, cell in enumerate(notebook.cells):
    if cell.cell_type == 'code':
      assert not cell.outputs and cell.execution_count is None, (
          f'cell {number} of {path.name} has outputs: clear all outputs before committing')
      long = [line for line in cell.source.splitlines() if len(line) > 104]
      assert not long, f'cell {number} of {path.name} has lines over 104 columns: {long}'


@each
def test_notebook_opens_in_colab(path):
  first = nbformat.read(path, as_version=4).cells[0]
  link = f'{COLAB}/blob/main/{path.relative_to(ROOT)}'
  assert first.cell_type == 'markdown' and link in first.source, f'no badge to {link}'
  assert _code(path)[0] == SETUP


def test_first_cell_installs_eqflow_once_on_colab_only(monkeypatch, tmp_path):
  called = []
  monkeypatch.setattr(subprocess, 'run', lambda command, check: called.append((os.getcwd(), command)))
  monkeypatch.chdir(ROOT)
  exec(SETUP, {})
  assert (called, os.getcwd()) == ([], str(ROOT))
  monkeypatch.chdir(ROOT / 'colabs')
  exec(SETUP, {})
  assert (called, os.getcwd()) == ([], str(ROOT))

  (tmp_path / 'eqflow/colabs').mkdir(parents=True)  # Created by the clone.
  monkeypatch.chdir(tmp_path)
  monkeypatch.setitem(sys.modules, 'google.colab', types.ModuleType('google.colab'))
  exec(SETUP, {})
  exec(SETUP, {})
  (above, clone), (inside, install) = called
  assert (above, inside) == (str(tmp_path), str(tmp_path / 'eqflow'))
  assert (clone[:2], clone[-1]) == (['git', 'clone'], REPOSITORY)
  assert (install[1:4], install[-1]) == (['-m', 'pip', 'install'], '.[train]')


@pytest.mark.long
@each
def test_notebook_runs_fast(path):
  _run(path, EQFLOW_FAST='1')


@pytest.mark.long
@each
def test_notebook_runs(path):
  _run(path)
