"""What the program does while it is silent, on stderr: a word before, and how far it is."""

from collections.abc import Iterable, Iterator
import time

import jax
import tqdm

from eqflow.training.runtime import streams

_SECONDS = 10.0   # between two lines of `counted`


def say(what: str) -> None:
  """A line on stderr, above the bars of a terminal; of several processes, the first one writes it."""
  if jax.process_index() == 0:
    tqdm.tqdm.write(what, file=streams.terminal())


def counted(steps: Iterable, total: int, what: str) -> Iterator:
  """The steps, counted on stderr: by a bar on a terminal, by a line every ten seconds elsewhere."""
  if jax.process_index() == 0 and streams.terminal().isatty():
    yield from tqdm.tqdm(steps, desc=what, total=total, leave=False, file=streams.terminal())
    return
  clock = time.monotonic()
  for done, step in enumerate(steps, 1):
    if time.monotonic() - clock > _SECONDS and done < total:
      say(f'{what}: {done} of {total}')
      clock = time.monotonic()
    yield step
