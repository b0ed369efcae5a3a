"""The house rules: seven levels with imports downwards, light imports, docstrings and names."""

import ast
import graphlib
import inspect
import re
import subprocess
import sys
import warnings

from jax import numpy as jnp
import jaxtyping
import pytest

from eqflow import descent, losses, oracles, outputs, processes, samplers
from eqflow.config import tables
from tests import ROOT

HOUSE = ROOT / 'eqflow'
FILES = sorted(HOUSE.rglob('*.py'))

# A file or package of eqflow imports its own level and lower numbers.
LEVELS = (
    'arrays mix files',
    'processes outputs densities grids blind_spots weights fields guidance couplings energies oracles',
    'losses samplers descent likelihood ood ema posthoc_ema',
    'models interop data evaluation planning training',
    'config',
    'runs',
    'commands main',
)
LEVEL = {name: level for level, names in enumerate(LEVELS, 1) for name in names.split()}
LIGHT = {'jax', 'numpy', 'jaxtyping', 'eqflow', *sys.stdlib_module_names}
# Imported by the one function that needs it; each is an extra of setup.cfg.
OPTIONAL = {'samplers/runge_kutta.py': {'diffrax'}, 'couplings.py': {'ot'}}


def _module(path):
  """'models.dit' for eqflow/models/dit.py, 'models' for its __init__."""
  name = '.'.join(path.relative_to(HOUSE).with_suffix('').parts)
  return name.removesuffix('.__init__')


MODULES = {_module(path) for path in FILES}


def _eqflow_imports(path):
  """The modules of eqflow that a file imports, anywhere in it."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'eqflow':
      package = '.'.join(node.module.split('.')[1:])
      for alias in node.names:
        inner = f'{package}.{alias.name}'.lstrip('.')
        yield inner if inner in MODULES else package
    elif isinstance(node, ast.Import):
      yield from (alias.name.removeprefix('eqflow.') for alias in node.names
                  if alias.name.startswith('eqflow.'))


def _other_imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom):
      yield node.module.split('.')[0]
    elif isinstance(node, ast.Import):
      yield from (alias.name.split('.')[0] for alias in node.names)


def test_imports_between_the_seven_levels_point_down():
  up = []
  for path in FILES:
    package = _module(path).split('.')[0]
    if package == '__init__':
      continue
    assert package in LEVEL, f'{package} has no level: add it to LEVELS in {__file__}'
    up += [f'{_module(path)} imports {other}' for other in _eqflow_imports(path)
           if other and LEVEL[other.split('.')[0]] > LEVEL[package]]
  assert not up, up


def test_no_two_packages_import_each_other():
  packages = {}
  for path in FILES:
    package = _module(path).split('.')[0]
    others = {other.split('.')[0] for other in _eqflow_imports(path) if other}
    packages.setdefault(package, set()).update(others - {package})
  # Raises CycleError, naming the cycle.
  order = list(graphlib.TopologicalSorter(packages).static_order())
  assert order.index('mix') < order.index('samplers') < order.index('commands')


def test_no_two_files_import_each_other():
  files = {_module(path): {other for other in _eqflow_imports(path) if other and other != _module(path)}
           for path in FILES if path.name != '__init__.py'}
  assert len(list(graphlib.TopologicalSorter(files).static_order())) >= len(files)


def test_the_first_three_levels_need_only_jax_numpy_and_jaxtyping():
  for path in FILES:
    package = _module(path).split('.')[0]
    if LEVEL.get(package, 1) <= 3:
      allowed = LIGHT | OPTIONAL.get(path.relative_to(HOUSE).as_posix(), set())
      assert set(_other_imports(path)) <= allowed, f'{path}: {set(_other_imports(path)) - allowed}'


HEAVY = ['tensorflow_datasets', 'tensorflow', 'grain', 'orbax', 'tensorboardX', 'matplotlib', 'sklearn']


@pytest.mark.parametrize('imports,absent', [
    ('from eqflow import samplers, descent, losses, ema', [*HEAVY, 'flax', 'optax', 'diffrax', 'ot']),
    # A config is read and rejected, and a step is planned, with what these bring.
    ('from eqflow import main; from eqflow.commands import plan', HEAVY)])
def test_what_an_import_does_not_need_is_not_imported(imports, absent):
  code = f'{imports}; import sys; print([m for m in {absent} if m in sys.modules])'
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
                       cwd=ROOT)
  assert out.stdout.strip() == '[]', f'{imports} imported {out.stdout}'


def test_own_modules_are_imported_under_their_own_name():
  for folder in ('eqflow', 'configs', 'tests', 'experiments'):
    for path in (ROOT / folder).rglob('*.py'):
      for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'eqflow':
          renamed = [f'{alias.name} as {alias.asname}' for alias in node.names if alias.asname]
          assert not renamed, f'{path}: {renamed}'


def test_no_attribute_is_set_on_a_function():
  for path in FILES:
    tree = ast.parse(path.read_text())
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
      if isinstance(node, ast.Assign):
        found = [ast.unparse(target) for target in node.targets if isinstance(target, ast.Attribute)
                 and ast.unparse(target).split('.')[0] in functions]
        assert not found, f'{path}: {found}'


def test_files_have_names_that_describe_their_content():
  for path in FILES:
    assert path.stem not in ('utils', 'common', 'helpers', 'misc')
    lines = path.read_text().count('\n')
    if lines > 400:
      warnings.warn(f'{path} has {lines} lines: is it still one idea?', stacklevel=1)
  assert len(list(HOUSE.glob('*.py'))) <= 24


def test_no_function_of_eqflow_is_longer_than_60_lines():
  for path in FILES:
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        lines = node.end_lineno - node.lineno + 1
        assert lines <= 60, f'{path}: {node.name} has {lines} lines'


def test_everything_public_has_a_docstring():
  for path in FILES:
    tree = ast.parse(path.read_text())
    if tree.body:
      assert ast.get_docstring(tree), f'{path} has no docstring'
    for node in tree.body:
      if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_'):
        assert ast.get_docstring(node), f'{path}: {node.name} has no docstring'


@pytest.mark.parametrize('package,rows,type_name', [
    (samplers, tables.SOLVERS, 'Solver'), (descent, tables.DESCENTS, 'Descent')])
def test_every_factory_of_a_solver_or_descent_has_a_row(package, rows, type_name):
  folder = HOUSE / package.__name__.split('.')[-1]
  factories = {node.name for path in folder.glob('*.py') for node in ast.parse(path.read_text()).body
               if isinstance(node, ast.FunctionDef) and not node.name.startswith('_')
               and node.returns and ast.unparse(node.returns) == type_name}
  assert factories <= set(package.__all__), f'export {factories - set(package.__all__)}'
  # Adam and momentum are rows of from_optax; `assemble` is for a user's own.
  missing = [name for name in factories - {'from_optax', 'assemble'}
             if getattr(package, name) not in [row.function for row in rows.values()]]
  assert len(factories) >= 4 and not missing, f'give {missing} a row in eqflow/config/tables.py'


def test_files_are_written_whole_or_not_at_all():
  for path in FILES:
    # A checkpoint is a folder that is renamed when it is whole.
    if path.relative_to(HOUSE).as_posix() not in ('files.py', 'training/checkpoint.py'):
      for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in ('write_text', 'write_bytes'):
          assert ast.unparse(node.value) == 'files', f'{path}: write with files.replacing'


def test_broadcasting_happens_in_one_place():
  for path in FILES:
    found = re.findall(r'\[:, None, None(?:, None)*\]', path.read_text())
    assert not found, f'{path} broadcasts by hand: {found}'


def test_processes_and_outputs_are_plain_functions_with_their_own_help():
  for module in (processes, outputs):
    for name, value in vars(module).items():
      if callable(value) and not name.startswith('_') and getattr(value, '__module__', '').startswith(
          module.__name__):
        assert inspect.getdoc(value), f'{module.__name__}.{name}'
  assert inspect.isfunction(processes.linear) and inspect.isfunction(outputs.u)


def test_signatures_read_as_written():
  assert str(inspect.signature(processes.shifted)) == (
      "(t: 'Coef', *, process: 'Process', shift: 'ArrayLike') -> 'Mix'")
  assert "density: 'Density'" in str(inspect.signature(losses.matching_loss))


def test_shapes_are_checked_while_tests_run():
  with pytest.raises(jaxtyping.TypeCheckError, match='parameter .t.'):
    oracles.gaussian(jnp.zeros((2, 3)), jnp.zeros(3), process=processes.linear, output=outputs.x,
                     mean=jnp.zeros(3), cov=jnp.eye(3))


def test_the_project_names_no_registry_and_no_machine():
  names = re.compile(r'https?://(pypi|files\.pythonhosted|deb\.debian|registry\.npm)')
  tracked = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
  for name in tracked.stdout.split():
    path = ROOT / name
    if path.suffix in ('.py', '.md', '.cfg', '.txt', '.toml') and path.exists():
      assert not names.search(path.read_text()), f'{name} names a registry host'
