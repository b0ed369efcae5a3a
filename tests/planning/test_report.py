"""Numbers with units."""

import pytest

from eqflow.planning import report


@pytest.mark.parametrize('size,text', [(0, '0 B'), (1023, '1,023 B'), (2**20, '1 MiB'),
                                       (2.51 * 2**30, '2.51 GiB')])
def test_bytes_have_a_suitable_unit(size, text):
  assert report.amount(size) == text
