"""config.ema: the EMAs that training tracks, each named by its decay or its std as written."""

from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from eqflow import ema
from eqflow.config.errors import naming


class Averages(NamedTuple):
  """What config.ema means."""
  names: tuple[str, ...]   # such as '0.999' (a decay) or '0.1' (a std)
  rates: Callable          # (step, examples, added) -> {name: EMA rate, the weight of the new params}


def build(config: ConfigDict) -> Averages:
  """The EMAs of a config."""
  section = config.ema
  decays = {repr(decay): decay for decay in section.decays}
  with naming('ema.stds'):
    powers = {repr(std): float(ema.power_from_std(std)) for std in section.stds}

  def rates(step, examples, added):
    return ({name: 1 - ema.warmed(decay, step) for name, decay in decays.items()}
            | {name: ema.power_rate(power, examples, added) for name, power in powers.items()})

  return Averages((*decays, *powers), rates)
