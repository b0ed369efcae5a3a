"""What the documentation names exists: links, paths, modules of commands, functions, flags, modes."""

import ast
import importlib.util
import pathlib
import re

import pytest

from eqflow.config import tables
from tests import ROOT

PAGES = sorted([*ROOT.glob('*.md'), *(page for folder in ('docs', 'experiments', 'tests', 'colabs')
                                      for page in (ROOT / folder).rglob('*.md'))])
# Patterns of names, not names.
PATTERN = re.compile(r'[<*]|\.\.\.')


def test_there_is_documentation_to_check():
  assert {'README.md', 'CONTRIBUTING.md', 'CHANGELOG.md'} <= {page.name for page in PAGES}
  assert (ROOT / 'docs/architecture.md') in PAGES


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file(page):
  targets = re.findall(r'\]\(([^)#]+)(?:#[^)]*)?\)', page.read_text())
  missing = [target for target in targets if not target.startswith(('http://', 'https://'))
             and not (page.parent / target).exists()]
  assert not missing


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_path_and_module_that_is_named_exists(page):
  text = page.read_text()
  folders = 'eqflow|configs|experiments|tests|docs|colabs'
  paths = re.findall(rf'(?<![\w/.~-])((?:{folders})/[\w./<>*-]*[\w/*])', text)
  missing = [path for path in paths if not PATTERN.search(path) and not (ROOT / path).exists()]
  modules = re.findall(r'python3? -m ((?:eqflow|experiments|tests)[\w.]*\w)', text)
  missing += [f'python -m {name}' for name in modules if not _runs(name)]
  assert not missing


def _runs(name):
  found = importlib.util.find_spec(name)
  if found is None or not found.submodule_search_locations:
    return found is not None
  return importlib.util.find_spec(f'{name}.__main__') is not None


def test_every_file_and_package_of_eqflow_is_in_the_tree_of_the_architecture():
  tree = (ROOT / 'docs/architecture.md').read_text().split('```')[1]
  rooms = [path.name for path in (ROOT / 'eqflow').iterdir() if not path.name.startswith('_')]
  assert len(rooms) > 20
  assert not [name for name in rooms if not re.search(rf'\b{name}(/|\b)', tree)]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_function_that_is_named_with_its_module_exists(page):
  missing, dotted = [], re.compile(r'(?<![\w./])(?:eqflow\.)?((?:\w+\.)*\w+)\.(\w+)[`(]')
  for module, name in dotted.findall(page.read_text()):
    room = ROOT / 'eqflow' / module.replace('.', '/')
    ours = room.is_dir() or room.with_suffix('.py').is_file()
    # Keys of a config and files look the same.
    if ours and module != 'config' and name != 'json' and name not in _names_of(room):
      missing.append(f'{module}.{name}')
  assert not missing


def _names_of(room):
  """The names that a module defines or imports, and the modules of a package, without importing it."""
  path = room / '__init__.py' if room.is_dir() else room.with_suffix('.py')
  names = {file.stem for file in room.glob('*')} if room.is_dir() else set()
  for node in ast.walk(ast.parse(path.read_text())):
    names.add(getattr(node, 'name', None))
    if isinstance(node, ast.ImportFrom):
      names |= {alias.asname or alias.name for alias in node.names}
    elif isinstance(node, ast.Assign):
      names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
  return names


@pytest.mark.parametrize('table', ['SOLVERS', 'DESCENTS', 'GRIDS', 'PROCESSES', 'OUTPUTS'])
def test_every_row_that_a_config_may_name_is_in_the_index_or_the_guide_of_sampling(table):
  pages = ''.join((ROOT / 'docs' / name).read_text() for name in ('index.md', 'sampling.md'))
  assert not [name for name in getattr(tables, table) if f'`{name}`' not in pages]


def test_no_text_installs_the_package_of_that_name_on_the_index():
  index = re.compile(r'pip install (-U |--upgrade )?[\'"]?eqflow(?! ?(\[\w+\])? ?@)')
  assert not [page.name for page in PAGES if index.search(page.read_text())]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_mode_and_config_that_is_named_exists(page):
  text = page.read_text()
  program = ' '.join(path.read_text() for path in (ROOT / 'eqflow').glob('commands/*.py'))
  known = set(re.findall(r"'(\w+)'", program + (ROOT / 'eqflow/main.py').read_text()))
  assert set(re.findall(r'--mode=(\w+)', text)) <= known
  for name, variant in re.findall(r'(configs/\w+\.py)(?::(\w+))?', text):
    config = _config(name)
    assert not variant or config.get_config(variant), f'{name}:{variant}'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_key_of_a_config_that_is_named_exists(page):
  known = set()
  for path in sorted((ROOT / 'configs').glob('*.py')):
    config = _config(f'configs/{path.name}')
    for variant in config.VARIANTS:
      known |= {f'{name}.{key}' for name, section in config.get_config(variant).items()
                if hasattr(section, 'keys') for key in section}
  assert set(re.findall(r'(?<![\w./])config\.([a-z_]+\.[a-z_]+)', page.read_text())) <= known


def _config(name):
  spec = importlib.util.spec_from_file_location(pathlib.Path(name).stem, ROOT / name)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module
