"""The error of a config that cannot run: its key and its value can be read, by tests and by users."""

from collections.abc import Iterator
import contextlib
from typing import Any

ABSENT = object()   # The `given` of a key that has no value, or of a section as a whole.


class ConfigError(ValueError):
  """config.<key>=<given> <allowed>; <remedy>.

  key is dotted, such as 'train.batch'. `allowed` completes the sentence ('must be from 0 to 1'), and
  `remedy` says what to do ('use 64').
  """

  def __init__(self, key: str, given: Any, allowed: str, remedy: str = ''):
    super().__init__(key, given, allowed, remedy)
    self.key, self.given, self.allowed, self.remedy = key, given, allowed, remedy

  def __str__(self):
    start = f'config.{self.key}:' if self.given is ABSENT else f'config.{self.key}={self.given!r}'
    return f'{start} {self.allowed}{self.remedy and "; "}{self.remedy}'


@contextlib.contextmanager
def naming(key: str, given: Any = ABSENT) -> Iterator[None]:
  """Turns the rejection of a library function into a ConfigError of the section it was called with."""
  try:
    yield
  except ConfigError:
    raise
  except (ValueError, TypeError, ZeroDivisionError) as error:
    raise ConfigError(key, given, str(error) if given is ABSENT else f'is rejected: {error}') from error
