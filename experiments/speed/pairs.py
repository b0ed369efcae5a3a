"""Two functions timed in turn in one process, so that a machine whose speed drifts drifts for both."""

import time

import numpy as np


def pairs(first, second, count, pause=0.0):
  """Seconds of `count` calls of first and of second, two arrays; both are called once before.

  Before each call the process sleeps for `pause`, so that threads which wait in a loop give up.
  """
  first(), second()
  seconds = {first: [], second: []}
  for i in range(count):
    # Whoever goes first in a pair goes second in the next.
    for function in ((first, second) if i % 2 else (second, first)):
      time.sleep(pause)
      seconds[function].append(clock(function))
  return np.array(seconds[first]), np.array(seconds[second])


def clock(function):
  """Seconds of one call."""
  start = time.perf_counter()
  function()
  return time.perf_counter() - start
