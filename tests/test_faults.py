"""Faults that are injected, in their short form: python -m experiments.faults has the long one."""

import jax
import numpy as np
import pytest

from experiments.faults import nans


@pytest.mark.parametrize('count', [9, pytest.param(99, marks=pytest.mark.long)])
def test_numbers_that_are_none_leave_state_and_checkpoints_clean(tmp_path, count):
  found = nans.poison(tmp_path, count, seed=0)
  assert len(found) == 6, 'both policies, and all kinds'
  for name, row in found.items():
    assert row['clean'] == row['cases'] == count // 3, f'{name}: {row}'


def test_what_is_injected_into_one_leaf_is_in_the_gradient_of_that_leaf_alone():
  given = {'a': np.float32(3), 'b': np.float32(5)}
  def loss(params, factor):
    return nans._marked(params['a'], factor) ** 2 + params['b'] ** 2
  value, grads = jax.value_and_grad(loss)(given, np.float32(np.nan))
  assert value == 34 and np.isnan(grads['a']) and grads['b'] == 10
