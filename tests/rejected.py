"""`with rejected("train.batch", 60, 8)`: the config is rejected by this key, with these numbers."""

from collections.abc import Iterator
import contextlib
from typing import Any

import pytest

from eqflow.config.errors import ConfigError


@contextlib.contextmanager
def rejected(key: str, *named: Any) -> Iterator[None]:
  """Passes if the block raises a ConfigError of this key with all of `named` in its message."""
  with pytest.raises(ConfigError) as caught:
    yield
  error = caught.value
  assert error.key == key, error
  missing = [name for name in named if str(name) not in str(error)]
  assert not missing, f'{error} does not name {missing}'
