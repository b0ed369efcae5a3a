"""What identifies a data set: every change is found, and the first one is named."""

import json
import os
import re

import numpy as np
import pytest

from eqflow.data import folder, identity, records
from eqflow.runs import claim
from tests.faults.datasets import FOLDER, paint, picture


@pytest.fixture
def pictures(tmp_path):
  """Two classes of three pictures each."""
  paint(tmp_path / 'D')
  return tmp_path / 'D'


def opened(root):
  return folder.source(root, size=(4, 4), cache_dir=root.parent / 'cache')


@pytest.mark.parametrize('change', FOLDER)
def test_a_run_does_not_resume_on_changed_data(pictures, change):
  workdir = pictures.parent / 'run'
  workdir.mkdir()
  claim.check_data(workdir, opened(pictures))
  claim.check_data(workdir, opened(pictures))
  make, said = FOLDER[change]
  make(pictures)
  with pytest.raises(ValueError, match=said) as error:
    claim.check_data(workdir, opened(pictures))
  assert '6 records' in str(error.value) and '\n' not in str(error.value)


def test_a_run_resumes_on_the_same_data_elsewhere(pictures):
  workdir = pictures.parent / 'run'
  workdir.mkdir()
  claim.check_data(workdir, opened(pictures))
  os.utime(pictures / 'a/1.png', ns=(0, 0))
  os.chmod(pictures / 'a/2.png', 0o600)
  (pictures / 'a/1.png').unlink()
  os.symlink('../../moved.png', pictures / 'a/1.png')
  picture(1).save(pictures.parent / 'moved.png', 'BMP')
  os.rename(pictures, pictures.parent / 'E')
  claim.check_data(workdir, opened(pictures.parent / 'E'))
  kept = json.loads((workdir / 'data.json').read_text())
  assert kept['classes'] == ['a', 'b'] and kept['records'] == 6 and kept['left_out'] == {}


def rows(order, label=(0, 1, 0, 1)):
  x = np.arange(8, dtype=np.float32).reshape(4, 2)[list(order)]
  return records.InMemory(x, np.array(label, np.int32)).parts()


@pytest.mark.parametrize('parts, said', [
    (rows((0, 1, 2, 3)), '^$'),
    (rows((0, 2, 1, 3)), "'record 1' has another content of 8 bytes, which 'record 2' had"),
    (rows((0, 1, 2, 3), (0, 1, 1, 1)), "'record 2' has the label 1, not 0"),
    (rows((0, 1, 2)), "'record 3' is missing"),
    (rows((0, 1, 2, 3, 3), (0, 1, 0, 1, 1)), "'record 4' is new"),
    (rows((0, 1, 2, 3))[::-1], 'order'),
    ([], "'record 0' is missing"),
])
def test_the_first_change_of_records_is_named(parts, said):
  assert re.search(said, identity.first_change(rows((0, 1, 2, 3)), parts))


def test_any_name_survives_as_text():
  names = 'a b', 'a"b', 'a\nb', 'ä/字', os.fsdecode(b'\xff.png'), '\\', ' ', ''
  parts = [records.Part(name, i - 1, i, 'f' * 32) for i, name in enumerate(names)]
  assert identity.parsed(identity.text(parts)) == parts
