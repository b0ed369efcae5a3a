"""The house keeps its order: ranks, light imports, short files, docstrings, names."""

import ast
import inspect
import pathlib
import re
import subprocess
import sys

from jax.tree_util import Partial
import pytest

from eqflow import adaptive, descent, multistep, names, samplers, solver, stochastic

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / 'eqflow').rglob('*.py'))

RANKS = {
    'arrays': 0, 'mix': 1, 'tables': 1, 'processes': 2, 'sde': 2.5, 'outputs': 3, 'densities': 3.2,
    'checks': 3.3, 'times': 3.5, 'weights': 4, 'fields': 4, 'energies': 4.2, 'oracles': 4,
    'solver': 4.5, 'stochastic': 4.7, 'multistep': 4.8, 'adaptive': 4.8, 'couplings': 4.8,
    'slots': 4.8, 'losses': 5, 'samplers': 5, 'descent': 5, 'scores': 5, 'likelihood': 5, 'ema': 1,
    'models': 1, 'data': 1, 'evaluation': 1, 'training': 2, 'interop': 5.5, 'sections': 5.5,
    'names': 5.8, 'ranges': 5.85, 'draws': 5.9, 'build': 6, 'beside': 6.3, 'run': 6.5,
    'sample': 6.5, 'compose': 6.7, 'neighbours': 6.7, 'evaluate': 7, 'finish': 7,
    'outliers': 7, 'train': 7, 'planning': 2, 'plan': 7.5, 'averages': 7.5, 'main': 8,
}
CORE = [name for name, rank in RANKS.items() if rank <= 5 and (ROOT / f'eqflow/{name}.py').exists()]
LIBRARIES = {'adaptive': {'diffrax'}, 'couplings': {'ot'}}


def _part(path):
  """'mix' for eqflow/mix.py, 'models' for eqflow/models/dit.py."""
  return path.relative_to(ROOT / 'eqflow').parts[0].removesuffix('.py')


def _imports(path):
  """The parts of eqflow that a file imports, anywhere in it."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('eqflow'):
      below = node.module.split('.')[1:]
      yield from [below[0]] if below else [alias.name for alias in node.names]
    elif isinstance(node, ast.Import):
      yield from (alias.name.split('.')[1] for alias in node.names
                  if alias.name.startswith('eqflow.'))


def _module_imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom):
      yield node.module.split('.')[0]
    elif isinstance(node, ast.Import):
      yield from (alias.name.split('.')[0] for alias in node.names)


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_only_files_of_a_lower_rank(path):
  part = _part(path)
  if part == '__init__':
    return
  assert part in RANKS, f'{part} has no rank: give it one in this test'
  for other in _imports(path):
    assert other == part or RANKS[other] < RANKS[part], (
        f'{path.name} (rank {RANKS[part]}) imports {other} (rank {RANKS[other]})')


@pytest.mark.parametrize('name', CORE)
def test_the_core_needs_jax_numpy_and_jaxtyping_alone(name):
  allowed = {'jax', 'numpy', 'jaxtyping', 'eqflow', *sys.stdlib_module_names}
  # Well-kept libraries, imported by the functions that call them.
  allowed |= LIBRARIES.get(name, set())
  found = set(_module_imports(ROOT / 'eqflow' / f'{name}.py'))
  assert found <= allowed, f'{name} imports {found - allowed}'


def test_importing_the_samplers_brings_no_flax_optax_tfds_or_tensorflow():
  heavy = ['flax', 'optax', 'tensorflow_datasets', 'tensorflow', 'grain', 'orbax', 'matplotlib']
  code = (f'import eqflow.samplers, eqflow.descent, eqflow.losses, sys; '
          f'print([m for m in {heavy} if m in sys.modules])')
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
                       cwd=ROOT)
  assert out.stdout.strip() == '[]', f'the core imported {out.stdout}'


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_short_and_named_for_what_they_hold(path):
  lines = path.read_text().count('\n')
  assert lines <= 300, f'{path} has {lines} lines'
  assert path.stem not in ('utils', 'common', 'helpers', 'misc')


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_everything_public_says_what_it_computes(path):
  tree = ast.parse(path.read_text())
  if tree.body:
    assert ast.get_docstring(tree), f'{path} has no docstring'
  for node in tree.body:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_'):
      assert ast.get_docstring(node), f'{path.name}: {node.name} has no docstring'


@pytest.mark.parametrize('name', ['samplers', 'multistep', 'stochastic', 'adaptive', 'descent'])
def test_a_solver_is_functions_of_at_most_40_lines(name):
  for node in ast.walk(ast.parse((ROOT / f'eqflow/{name}.py').read_text())):
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      lines = node.end_lineno - node.lineno + 1
      assert lines <= 40, f'{name}.{node.name} has {lines} lines'


def _factories(module):
  """The public functions that are annotated to return a Solver: name -> function."""
  functions = {name: value for name, value in vars(module).items()
               if inspect.isfunction(value) and not name.startswith('_')}
  return {name: value for name, value in functions.items()
          if inspect.signature(value).return_annotation is solver.Solver and name != 'assemble'}


@pytest.mark.parametrize('module,rows', [(samplers, names.SOLVERS), (descent, names.DESCENTS)])
def test_every_solver_has_a_row(module, rows):
  found = _factories(module)
  # from_optax is Adam and momentum there: its transform is no number of a config.
  missing = [name for name, value in found.items() if value not in rows.values()
             and name != 'from_optax']
  assert len(found) >= 4 and not missing, f'give {missing} a row in eqflow/names.py'
  if module is samplers:
    assert set(found) <= set(samplers.__all__), 'a solver is a name of samplers'
    for part in (adaptive, multistep, stochastic):
      assert _factories(part).items() <= found.items(), f'import {part.__name__} into samplers'


def test_broadcasting_happens_in_one_place():
  for path in FILES:
    found = re.findall(r'\[:, None, None(?:, None)*\]', path.read_text())
    assert not found, f'{path} broadcasts by hand: {found}'


def test_partials_carry_their_docstring():
  from eqflow import fields, outputs, processes, weights
  for module in (fields, outputs, processes, weights):
    for name, value in vars(module).items():
      if isinstance(value, Partial):
        assert inspect.getdoc(value.func), f'{module.__name__}.{name}'


def test_the_project_names_no_registry_and_no_machine():
  names = re.compile(r'https?://(pypi|files\.pythonhosted|deb\.debian|registry\.npm)')
  tracked = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
  for name in tracked.stdout.split():
    path = ROOT / name
    if path.suffix in ('.py', '.md', '.cfg', '.txt', '.toml') and path.exists():
      assert not names.search(path.read_text()), f'{name} names a registry host'
