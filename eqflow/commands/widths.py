"""--std: the widths of power EMAs, written with '...' for those between."""

import math

from eqflow import ema

_MOST = 1000  # The most widths that one '...' expands to.


def stds_of(given: list[str] | None) -> list[float]:
  """['0.03', '0.05', '...', '0.25'] -> numbers; '...' continues with the step of the two before it.

  Raises ValueError for an empty list, and for widths outside (0, 0.2887).
  """
  stds, example = [], '--std=0.05,0.1 or --std=0.03,0.05,...,0.25'
  for i, text in enumerate(given or ()):
    if text == '...':
      if len(stds) < 2 or i + 1 == len(given):
        raise ValueError(f"--std={','.join(given)}: '...' needs two numbers before it and one after; "
                         f'write {example}')
      continue
    try:
      number = float(text)
    except ValueError:
      raise ValueError(f'--std={",".join(given)}: {text!r} is not a number; write {example}') from None
    if i and given[i - 1] == '...':
      stds += _between(*stds[-2:], number, given)
    stds.append(number)
  wrong = [std for std in stds if not ema.is_std(repr(std))]
  if wrong or not stds:
    raise ValueError(f'--std={",".join(given or ())} must be numbers above 0 and below 0.2887'
                     + (f', which {wrong} are not' if wrong else '') + f'; write {example}')
  return list(dict.fromkeys(stds))


def _between(first, second, last, given):
  """second + i (second - first), for i = 1, 2, ... while it is below `last`."""
  count = (last - second) / (second - first) if second > first else 0
  if not 0 < count < _MOST:
    raise ValueError(f"--std={','.join(given)}: the two numbers before '...' must increase towards "
                     f'the last, in fewer than {_MOST} steps')
  return [round(second + i * (second - first), 10) for i in range(1, math.ceil(count - 1e-6))]
