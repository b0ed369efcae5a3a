"""Times two functions alternately, so that a drift of the machine's speed affects both."""

import time

import numpy as np


def pairs(first, second, count, pause=0.0):
  """Seconds of `count` calls of first and of second, as two arrays. Both are called once before.

  The process sleeps for `pause` seconds before each call, so that busy-waiting threads go to sleep.
  """
  first(), second()
  seconds = {first: [], second: []}
  for i in range(count):
    # The order alternates.
    for function in ((first, second) if i % 2 else (second, first)):
      time.sleep(pause)
      seconds[function].append(clock(function))
  return np.array(seconds[first]), np.array(seconds[second])


def clock(function):
  """Seconds of one call."""
  start = time.perf_counter()
  function()
  return time.perf_counter() - start
