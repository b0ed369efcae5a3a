"""The digits, and one thread for linear algebra."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
import threadpoolctl


@pytest.fixture(scope='module', autouse=True)
def one_thread():
  """On busy cores the threads of OpenBLAS wait for each other: 1 s for what takes 4 ms alone."""
  with threadpoolctl.threadpool_limits(1):
    yield


@pytest.fixture(scope='module')
def digits():
  data = load_digits()
  return (data.images[..., None] / 8 - 1).astype(np.float32), data.target
