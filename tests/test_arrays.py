"""Pytrees of functions, and one random stream for each use of an example's key."""

import ast
import functools
import math
import re
import subprocess
import sys

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
import numpy as np
import pytest

from eqflow import arrays
from eqflow.arrays import Stream
from tests import ROOT

# The functions that fold each stream from an example's key, each once. Functions that share a stream
# compute the same numbers (a coupling permutes the noise of the loss) or exclude each other: an example
# is sampled by one of generate, generate_refilled and --mode=denoise.
SAMPLED = ['config/sampling.py generate', 'config/sampling.py generate_refilled']
STREAMS = {
    'START': ['commands/denoise.py one', *SAMPLED],
    'NOISE': ['config/objective.py keys_of', 'losses.py matching_loss'],
    'LABEL_DROP': ['config/objective.py loss'],
    'PAIRS': ['config/sampling.py pair'],
    'DROPOUT': ['config/networks.py trained'],
    'TIME': ['losses.py matching_loss'],
    'SOLVER': ['commands/denoise.py one', *SAMPLED],
    'LABEL': ['runs/generate.py labels_of'],
    'PARTNER': ['couplings.py'],
    'UNCERTAINTY': ['config/networks.py init'],
}
# Numbers of steps, probes and blocks, folded from the keys of one stream.
NUMBERED = {'samplers/base.py', 'descent/loops.py', 'likelihood.py', 'models/edm2.py'}
# Where random numbers are drawn, each from keys that the caller passes or a stream of its own.
DRAWN = {'arrays.py', 'densities.py', 'likelihood.py', 'models/magnitude.py', 'runs/generate.py'}
# Of jax.random, what makes keys and draws nothing.
KEYS = {'key', 'key_data', 'wrap_key_data', 'split'}


def _calls():
  """(file and innermost function, name as written, call) of every call in eqflow."""
  def within(node, place):
    for child in ast.iter_child_nodes(node):
      if isinstance(child, ast.Call):
        yield place, ast.unparse(child.func), child
      inner = f'{place.split()[0]} {child.name}' if isinstance(child, ast.FunctionDef) else place
      yield from within(child, inner)
  for path in sorted((ROOT / 'eqflow').rglob('*.py')):
    yield from within(ast.parse(path.read_text()), path.relative_to(ROOT / 'eqflow').as_posix())


def test_every_use_of_an_examples_key_has_a_stream_of_its_own():
  streams, numbered = {}, set()
  for place, name, call in _calls():
    if name.split('.')[-1] == 'fold':
      kind, _, stream = ast.unparse(call.args[1]).rpartition('.')
      assert kind.split('.')[-1] == 'Stream', f'{place}: {ast.unparse(call)} folds no Stream'
      streams.setdefault(stream, []).append(place)
    if name.split('.')[-1] == 'fold_number':
      numbered.add(place.split()[0])
  assert {stream: sorted(places) for stream, places in streams.items()} == STREAMS
  assert set(STREAMS) == {stream.name for stream in Stream}
  assert numbered == NUMBERED


def test_random_numbers_are_drawn_only_where_their_keys_are_known():
  for path in sorted((ROOT / 'eqflow').rglob('*.py')):
    file = path.relative_to(ROOT / 'eqflow').as_posix()
    used = {node.attr for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == 'jax.random'}
    if file != 'arrays.py':
      assert 'fold_in' not in used, f'{file}: fold a Stream or a number with arrays'
    if file not in DRAWN:
      assert used <= KEYS, f'{file} draws {used - KEYS}'


def test_streams_of_one_example_and_examples_of_one_stream_differ():
  keys = arrays.example_keys(3, jnp.arange(4, dtype=jnp.uint32))
  data = np.array([jax.random.key_data(arrays.fold(keys, stream)) for stream in Stream])
  assert len(np.unique(data.reshape(-1, data.shape[-1]), axis=0)) == 4 * len(Stream)
  by_hand = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 2), 1)
  np.testing.assert_array_equal(data[1, 2], jax.random.key_data(by_hand))


def test_numbers_are_folded_one_for_all_or_one_for_each():
  keys = jax.random.split(jax.random.key(0), 3)
  for number in (5, jnp.array([5, 1, 2])):
    found = jax.random.key_data(arrays.fold_number(keys, number))
    for j, n in enumerate(np.broadcast_to(number, 3)):
      np.testing.assert_array_equal(found[j], jax.random.key_data(jax.random.fold_in(keys[j], n)))


def _scaled(x, *, scale, then):
  return scale * then[0](x)


def _plus(x, y):
  return x + y


@pytest.mark.parametrize('bind', [functools.partial, Partial])
def test_functions_bound_at_any_depth_are_arguments_of_compiled_functions(bind):
  traced = []

  @jax.jit
  def apply(function, x):
    traced.append(1)
    return function(x)

  def bound(scale, shift):
    return bind(_scaled, scale=scale, then=[bind(_plus, shift), _plus])

  for scale, shift in ((2.0, 1.0), (3.0, 5.0)):
    found = apply(arrays.pytree(bound(scale, shift)), jnp.array(4.0))
    assert found == scale * (4 + shift)
  assert len(traced) == 1, 'another number compiled again'
  assert apply(arrays.pytree((jnp.sin,))[0], jnp.array(0.0)) == 0
  assert arrays.pytree({'a': None, 'b': jnp.float32}) == {'a': None, 'b': jnp.float32}


SINGLE = [
    'arrays.fold(key, arrays.Stream.NOISE)', 'arrays.fold_number(key, 3)',
    'losses.matching_loss(key, field, z, process=linear, output=outputs.u, density=uniform)',
    'samplers.sample(samplers.ddim(linear, outputs.u, churn=0.5), field, z, [1.0, 0.0], key)']


@pytest.mark.parametrize('value,expected', [(0.5, (0.5, 1)), (1.5, (1, 0)), (9.0, (1, 0))])
def test_the_inverse_of_a_function_that_ends_before_its_bounds(value, expected):
  f = lambda t: jnp.where(t <= 1, t, jnp.nan)
  assert jax.value_and_grad(lambda value: arrays.inverse(f, value, 0.0, 4.0))(value) == expected


@pytest.mark.parametrize('value,error', [
    (jnp.array(2 + 0j), TypeError), (2j, TypeError), ('3', TypeError), (np.array('3'), TypeError),
    (None, TypeError)])
def test_what_is_not_a_real_number_is_rejected(value, error):
  arrays.check_scalars(scale=1, other=np.float16(math.inf), more=jnp.ones(3, jnp.bfloat16))
  with pytest.raises(error, match='scale'):
    arrays.check_scalars(scale=value)


def test_a_single_key_is_rejected_with_its_shape():
  # In a process of its own, where types are not checked.
  program = f"""
import jax
from eqflow import arrays, densities, losses, outputs, processes, samplers
key, linear, uniform = jax.random.key(0), processes.linear, densities.uniform
z, field = jax.numpy.ones((8, 2)), lambda z, t: z
for call in {SINGLE}:
  try:
    eval(call)
    print('accepted')
  except ValueError as error:
    print(str(error).replace('\\n', ' '))
"""
  done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True)
  said = done.stdout.splitlines()
  assert len(said) == len(SINGLE), done.stderr
  for call, line in zip(SINGLE, said):
    assert re.search(r'keys has shape \(\).*: give one key for each example', line), (call, line)
