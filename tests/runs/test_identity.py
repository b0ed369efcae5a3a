"""Which run a folder belongs to."""

import json

from ml_collections import ConfigDict
import numpy as np
import pytest

from eqflow.config import rows, tables
from eqflow.runs import identity
from tests import config_file


def test_a_key_that_one_of_two_configs_lacks_is_named_as_absent(tmp_path):
  config = config_file('digits').get_config()
  theirs = config.to_dict()
  del theirs['optimizer']['clip']
  theirs['optimizer']['nesterov'] = 1.0
  (tmp_path / 'config.json').write_text(json.dumps(theirs))
  with pytest.raises(ValueError) as error:
    identity.check_config(config, tmp_path)
  assert 'config.optimizer.clip: absent there, 0.0 given' in str(error.value)
  assert 'config.optimizer.nesterov: 1.0 there, absent given' in str(error.value)


def test_a_key_that_does_not_change_the_numbers_of_a_run_may_differ(tmp_path):
  config = config_file('digits').get_config()
  theirs = config.to_dict()
  del theirs['sample']['num_steps']
  (tmp_path / 'config.json').write_text(json.dumps(theirs))
  identity.check_config(config, tmp_path)


@pytest.mark.parametrize('name', tables.SCHEDULES)
def test_a_run_may_be_trained_longer_unless_its_learning_rate_depends_on_the_length(tmp_path, name):
  config = config_file('toy').get_config()
  config.optimizer.schedule = ConfigDict(dict(name=name) | tables.SCHEDULES[name].required)
  (tmp_path / 'config.json').write_text(config.to_json_best_effort())
  longer = config.copy_and_resolve_references()
  longer.train.num_examples *= 2
  seen = np.linspace(0.0, config.train.num_examples, 9)
  rates = [rows.bind(tables.SCHEDULES, each.optimizer.schedule, '',
                     num_examples=each.train.num_examples)(seen) for each in (config, longer)]
  if np.array_equal(*rates):
    identity.check_config(longer, tmp_path)
    assert identity.identity(config) == identity.identity(longer)
  else:
    with pytest.raises(ValueError, match=f'num_examples: 768000 there, 1536000 given.*{name}'):
      identity.check_config(longer, tmp_path)
    assert identity.identity(config) != identity.identity(longer)
