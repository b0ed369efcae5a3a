"""FLOPs of a program, counted from its jaxpr, so that they do not depend on the compiler.

Compilers count the body of a loop once, and some do not count at all.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
from jax.extend import core


def flops(function: Callable, *args: Any) -> int:
  """FLOPs of the dots and convolutions of function(*args), 2 for a multiply-add.

  The sum over all devices; args may be abstract arrays. A loop of unknown length counts once, a
  condition as its most expensive branch; elementwise operations are not counted.
  """
  return of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def of_jaxpr(jaxpr: Any) -> int:
  """`flops` of a jaxpr."""
  return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation):
  name, params = equation.primitive.name, equation.params
  if name == 'dot_general':
    return _of_dot(equation)
  if name == 'conv_general_dilated':
    return _of_convolution(equation)
  inner = [of_jaxpr(jaxpr) for jaxpr in _inside(params)]
  if name == 'scan':
    return params['length'] * sum(inner)
  if name == 'cond':
    return max(inner)
  if name == 'shard_map':
    # Its body is the work of one device.
    return math.prod(params['mesh'].shape[axis] for axis in params['newly_manual_axes']) * sum(inner)
  return sum(inner)


def _inside(params):
  """The jaxprs inside an equation, under any parameter name."""
  for value in params.values():
    for one in value if isinstance(value, (tuple, list)) else (value,):
      one = getattr(one, 'jaxpr', one)
      if isinstance(one, core.Jaxpr):
        yield one


def _of_dot(equation):
  (contracted, _), _ = equation.params['dimension_numbers']
  left = equation.invars[0].aval.shape
  return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _of_convolution(equation):
  """2 for every product of a kernel entry and an input entry: neither padding nor dilation counts.

  So the gradients with respect to input and kernel each cost as much as the convolution.
  """
  params = equation.params
  numbers = params['dimension_numbers']
  left, right = (v.aval.shape for v in equation.invars)
  out = equation.outvars[0].aval.shape
  met = math.prod(
      _meetings(left[numbers.lhs_spec[i]], right[numbers.rhs_spec[i]], out[numbers.out_spec[i]],
                params['window_strides'][i - 2], params['padding'][i - 2][0],
                params['lhs_dilation'][i - 2], params['rhs_dilation'][i - 2])
      for i in range(2, len(out)))
  batch, features = (out[numbers.out_spec[i]] for i in (0, 1))
  # A kernel has the input channels of one group only.
  return 2 * batch * features * right[numbers.rhs_spec[1]] * met


def _meetings(size, taps, places, stride, before, hole, spread):
  """How many of places x taps fall on one of `size` entries with a distance of `hole`."""
  found = 0
  for tap in range(taps):
    for place in range(places):
      at = place * stride + tap * spread - before
      found += 0 <= at <= (size - 1) * hole and at % hole == 0
  return found
