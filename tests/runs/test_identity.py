"""Which run a folder belongs to."""

import json

import pytest

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
