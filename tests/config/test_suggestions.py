"""An error suggests a flag that works."""

import ast
import importlib.util
import inspect

from ml_collections import ConfigDict
import pytest

from eqflow.config import recipes, tables
from eqflow.config.errors import ConfigError
from eqflow.config.rows import Row, checked
from tests import config_file
from tests.rejected import rejected

TABLES = {name: table for name, table in vars(tables).items()
          if isinstance(table, dict) and all(isinstance(each, Row) for each in table.values())}
ROWS = [(table, name) for table, rows in TABLES.items() for name in rows]


@pytest.mark.parametrize('table,name', ROWS)
def test_the_section_of_an_error_is_accepted(table, name):
  with pytest.raises(ConfigError) as caught:
    checked(TABLES[table], ConfigDict(dict(name=name, unknown=1)), 'key')
  flag, _, text = caught.value.remedy.partition('=')
  section = ast.literal_eval(ast.literal_eval(text))
  assert flag.endswith('--config.key') and section['name'] == name
  checked(TABLES[table], ConfigDict(section), 'key')


@pytest.mark.parametrize('table,name', ROWS)
def test_a_row_needs_the_numbers_without_a_default(table, name):
  row = TABLES[table][name]
  arguments = inspect.signature(row.function).parameters if row.numbers else {}
  assert set(row.required) == {
      each for each in row.numbers if arguments[each].default is inspect.Parameter.empty}


def test_a_model_of_a_descent_takes_a_solver_along_times():
  config = config_file('toy').get_config('eqm')
  config.sample.solver = ConfigDict(dict(name='ddim'))
  assert len(recipes.recipe(config).sampling.grid) == config.sample.num_steps + 1


@pytest.mark.parametrize('key,name,package,extra', [
    ('loss.coupling', 'optimal_transport', 'ot', '[ot]'),
    ('sample.solver', 'adaptive', 'diffrax', '[ode]')])
def test_a_missing_package_is_rejected_with_its_extra(monkeypatch, key, name, package, extra):
  found = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, 'find_spec', lambda each: each != package and found(each) or None)
  config = config_file('toy').get_config('flow')
  section, last = key.split('.')
  config[section][last] = ConfigDict(dict(name=name))
  with rejected(f'{key}.name', name, extra):
    recipes.recipe(config)
