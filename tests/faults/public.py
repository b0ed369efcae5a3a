"""Calls every public function of levels 1 to 3 at its edges, and counts those that break a law.

The rows and the laws come from tests/laws/test_public.py, with every dtype.
"""

from jax import numpy as jnp
import pytest

from tests.laws import test_public

LAWS = {
    **{f'no example and one, {jnp.dtype(dtype).name}': (
        test_public.test_results_follow_the_batch_down_to_none_and_the_dtype,
        lambda dtype=dtype: ((name, dtype) for name in test_public.ROWS))
       for dtype in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)},
    'keys of another kind': (
        test_public.test_keys_are_typed_and_one_for_each_example, test_public.keys_given),
    'labels of another kind': (test_public.test_labels_are_integers_one_for_each_example, lambda: (
        (name, kind) for name in test_public.LABELLED for kind in test_public.WRONG_LABELS)),
    'a string for a function': (
        test_public.test_a_string_for_a_function_is_rejected_by_its_name,
        lambda: test_public.arguments('function')),
    'a config for a number': (
        test_public.test_a_config_for_a_number_is_rejected_by_its_name,
        lambda: test_public.arguments('number')),
}


def judged(what: str) -> dict[str, int | str]:
  """{'what', 'cases', 'wrong'} of one law; prints the calls that break it."""
  law, cases = LAWS[what]
  found = dict(what=what, cases=0, wrong=0)
  for given in cases():
    said = _said(law, given)
    found['cases'] += 1
    if said:
      found['wrong'] += 1
      print(what, *given, '->', said, flush=True)
  return found


def _said(law, given):
  try:
    law(*given)
  except (Exception, pytest.fail.Exception) as error:
    return f'{type(error).__name__}: {error}'
  return ''
