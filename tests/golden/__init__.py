"""Golden examples: networks of random weights, with the outputs that their reference code gives."""

import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent


def example(state: str, forward: str) -> tuple[pathlib.Path, dict[str, np.ndarray]]:
  """(the file of the weights, the arrays of the forward pass)."""
  return FOLDER / state, dict(np.load(FOLDER / forward))
