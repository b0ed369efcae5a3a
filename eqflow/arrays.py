"""Pytrees, broadcasting, and the keys and noise of single examples.

Data is a pytree of arrays with a leading batch axis b; coefficients (alpha, sigma, weights, step
sizes) are scalars or [b]. `combine` is the one place where the two meet.
"""

from __future__ import annotations

from collections.abc import Callable
import enum
import functools
import math
from typing import Any

import jax
from jax import numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Key, Num, PyTree, Shaped
import numpy as np

Data = PyTree[Num[Array | np.ndarray, 'b ...']]
# A time or coefficient: one number for all examples, or one for each.
Coef = Float[ArrayLike, '#b'] | Float[ArrayLike, ''] | int
Keys = Key[Array, 'b']
Number = float | int
Grid = Shaped[Array | np.ndarray, 'n'] | list


def expand(coef: Any, like: Any) -> Array:
  """coef [b] -> [b, 1, ..., 1], of the rank of `like` [b, ...]; a scalar stays a scalar.

  Raises ValueError where the batch sizes differ: [64] against [1, 2] would broadcast silently.
  """
  coef = jnp.asarray(coef)
  if coef.ndim == 0:
    return coef
  if coef.ndim > 1 or like.ndim == 0 or coef.shape[0] not in (1, like.shape[0]):
    raise ValueError(f'coefficient has shape {coef.shape}, data has shape {like.shape}: '
                     'a coefficient is a scalar or has one number per example')
  return coef.reshape(coef.shape + (1,) * (like.ndim - 1))


def combine(*terms: tuple[Any, Data]) -> Data:
  """sum_i coef_i * tree_i, leaf by leaf, computed in the widest dtype and cast to the first tree's.

  Coefficients are scalars or [b]; the trees [b, ...] must agree in structure and shapes. Raises
  TypeError where the first tree is not floating.
  """
  coefs, trees = zip(*terms)

  def leaf(*leaves):
    leaves = [jnp.asarray(a) for a in leaves]
    check_floating('data', leaves[0])
    total = sum(expand(c, a) * a for c, a in zip(coefs, leaves))
    return total.astype(leaves[0].dtype)

  return jax.tree.map(leaf, *trees)


def where(condition: Any, tree: PyTree, other: PyTree) -> PyTree:
  """The tree where `condition` (a scalar or [b]) is true, else `other`, leaf by leaf."""
  return jax.tree.map(lambda a, b: jnp.where(expand(condition, a), a, b), tree, other)


def check_alike(name: str, tree: Any, other_name: str, other: Any) -> None:
  """Raises ValueError unless `tree` and `other` agree in structure and leaf shapes, naming both.

  Silent broadcasting would give the right shape and the wrong loss.
  """
  if jax.tree.structure(tree) != jax.tree.structure(other):
    raise ValueError(f'{name} has the structure {jax.tree.structure(tree)} for {other_name} with '
                     f'{jax.tree.structure(other)}: the structures must be equal')
  for path, a, b in zip(_paths(tree), jax.tree.leaves(tree), jax.tree.leaves(other)):
    if jnp.shape(a) != jnp.shape(b):
      at = f' at {path}' if path else ''
      raise ValueError(f'{name} {jnp.shape(a)} for {other_name} {jnp.shape(b)}{at}: '
                       'the shapes must be equal')


def check_numbers(name: str, value: Any, z: Data) -> None:
  """Raises ValueError unless `value` has one number for each example of z, naming it."""
  b = batch_size(z)
  if jnp.shape(value) != (b,):
    raise ValueError(f'{name} has shape {jnp.shape(value)}: give one number for each of {b} examples')


def check_rows(name: str, tree: Any, z: Data) -> None:
  """Raises ValueError unless every leaf of `tree` has one row for each example of z, naming it.

  A missing row would silently be read as the last one that exists.
  """
  b = batch_size(z)
  for leaf in jax.tree.leaves(tree):
    if jnp.shape(leaf)[:1] != (b,):
      raise ValueError(f'{name} has a leaf of shape {jnp.shape(leaf)} for {b} examples: give one row '
                       f'for each, [{b}, ...]')


def check_labels(name: str, labels: Any, b: int, num_classes: int | None = None) -> None:
  """Raises ValueError unless `labels` are integers [b], from 0 below num_classes if that is given.

  A label that is NaN equals no label, not even itself; True is an answer, not a class. The values of
  traced labels are not checked.
  """
  labels = labels if hasattr(labels, 'dtype') else np.asarray(labels)
  if labels.shape != (b,):
    raise ValueError(f'{name} has shape {labels.shape} for {b} examples: give one label for each, such '
                     f'as np.full({b}, 0)')
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(f'{name} has dtype {labels.dtype}: labels are integers; count the classes from 0, '
                     f'such as np.unique({name}, return_inverse=True)[1]')
  if num_classes is None or is_traced(labels):
    return
  labels = np.asarray(labels)
  if (wrong := np.unique(labels[(labels < 0) | (labels >= num_classes)])).size:
    raise ValueError(f'{name} contains {wrong[:5].tolist()}: give 0 to {num_classes - 1}')


def check_keys(keys: Any, b: int | None = None) -> None:
  """Raises unless `keys` are typed keys [b]: TypeError for another kind, ValueError for a shape.

  The legacy keys of jax.random.PRNGKey are integers: [b, 2] of them may be keys or data.
  """
  if not jnp.issubdtype(getattr(keys, 'dtype', type(keys)), jax.dtypes.prng_key):
    kind = f'{keys.dtype} {jnp.shape(keys)}' if hasattr(keys, 'dtype') else repr(keys)
    raise TypeError(f'keys is {kind}: give typed keys, such as jax.random.split(jax.random.key(0), 8), '
                    'or wrap legacy keys of jax.random.PRNGKey in jax.random.wrap_key_data')
  if keys.ndim != 1 or b not in (None, keys.shape[0]):
    count = 8 if b is None else b
    raise ValueError(f'keys has shape {keys.shape}{"" if b is None else f" for {b} examples"}: give '
                     f'one key for each example, such as jax.random.split(key, {count})')


def check_functions(**given: Any) -> None:
  """Raises TypeError unless every argument is a function, naming it."""
  for name, value in given.items():
    if not callable(value):
      raise TypeError(f'{name} is the {type(value).__name__} {value!r:.60}: give a function')


def check_scalars(**given: Any) -> None:
  """Raises TypeError unless every argument is a real number or an array of them, naming it."""
  for name, value in given.items():
    kind = getattr(value, 'dtype', type(value))
    if not isinstance(value, (int, float, np.ndarray, np.generic, jax.Array)) or not (
        kind is bool or kind is int or any(
            jnp.issubdtype(kind, each) for each in (jnp.floating, jnp.integer))):
      raise TypeError(f'{name} is the {type(value).__name__} {value!r:.60}: give a number')


def check_floating(name: str, tree: Any) -> None:
  """Raises TypeError where a leaf of `tree` is not floating, naming it."""
  for leaf in jax.tree.leaves(tree):
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
      raise TypeError(f'{name} is {jnp.result_type(leaf)}, not floating: cast it with '
                      'x.astype(jnp.float32), or scale uint8 images by x / 127.5 - 1')


def floating(a: Any) -> Array:
  """The array a, integers as the default floating type."""
  a = jnp.asarray(a)
  return a if jnp.issubdtype(a.dtype, jnp.floating) else a.astype(jnp.result_type(float))


def wide(t: Any) -> Array:
  """The times t in float32 or wider: in half precision alpha and sigma have 3 digits or fewer."""
  t = floating(t)
  return t.astype(jnp.promote_types(t.dtype, jnp.float32))


def is_number(value: Any, number: Number) -> bool:
  """Whether value is this one number, and known on the host."""
  return not is_traced(value) and np.ndim(value) == 0 and float(value) == number


def inverse(f: Callable, value: ArrayLike, low: ArrayLike, high: ArrayLike) -> Float[Array, '...']:
  """The t in [low, high] at which the rising function f is `value`, by 60 bisections.

  Differentiable in `value` and in what f closes over, by the implicit function: dt/dvalue = 1/f'(t).
  Where f does not reach the value, t is the nearer end of f and its derivative 0.
  """
  value = floating(value)

  def halve(_, ends):
    left, right = ends
    middle = (left + right) / 2
    below = f(middle) < value
    return jnp.where(below, middle, left), jnp.where(below, right, middle)

  ends = jnp.full_like(value, low), jnp.full_like(value, high)
  left, right = jax.lax.stop_gradient(jax.lax.fori_loop(0, 60, halve, ends))
  t = (left + right) / 2
  # f need not be finite at the ends, and may end before `high`: it is NaN beyond.
  inside = (t > low) & (t < high) & jnp.isfinite(value) & ~jnp.isnan(f(right))
  at = jnp.where(inside, t, (low + high) / 2)
  slope = jax.lax.stop_gradient(jax.jvp(f, (at,), (jnp.ones_like(at),))[1])
  # Zero in value; its derivative is the implicit function's.
  miss = jnp.where(inside, value, 0) - f(at)
  step = (miss - jax.lax.stop_gradient(miss)) / jnp.where(slope == 0, 1, slope)
  return t + jnp.where(inside, step, 0)


def _paths(tree):
  return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def batch_size(z: Data) -> int:
  """b, the length of the leading axis of every leaf of z. Raises ValueError where they differ."""
  sizes = {np.shape(a)[:1] for a in jax.tree.leaves(z)}
  if len(sizes) != 1 or () in sizes:
    shapes = ', '.join(str(np.shape(a)) for a in jax.tree.leaves(z)) or 'none'
    raise ValueError(f'data has leaves of shapes {shapes}: each leaf needs the same leading axis, with '
                     'one row for each example')
  return sizes.pop()[0]


def noise_like(keys: Keys, z: Data, *, draw: Callable = jax.random.normal) -> Data:
  """eps ~ N(0, I), with the shapes and dtypes of z; the noise of example j depends on keys[j] alone.

  So it does not change with the batch, the devices or the processes. Leaf i uses fold_in(keys[j], i).
  draw(key, shape, dtype) may be another distribution. Raises as `check_keys`.
  """
  check_keys(keys, batch_size(z))
  leaves, structure = jax.tree.flatten(z)

  def leaf(i, a):
    return jax.vmap(lambda key: draw(jax.random.fold_in(key, i), a.shape[1:], a.dtype))(keys)

  return jax.tree.unflatten(structure, [leaf(i, a) for i, a in enumerate(leaves)])


@enum.unique
class Stream(enum.IntEnum):
  """The random streams that are folded from the key of one example, one for each use.

  Training, previews, evaluation and sampling start from the same key of an example, so two uses with
  one number would see the same random numbers.
  """
  START = 0         # the noise that a sample starts from
  NOISE = 1         # eps of a training example
  LABEL_DROP = 2    # whether a training example loses its label
  PAIRS = 3         # the noise of (noise, sample) pairs
  DROPOUT = 4
  TIME = 5          # t of a training example
  SOLVER = 6        # the noise of a stochastic solver or descent
  LABEL = 7         # the class of a sample
  # Folded where other numbers are folded too: from NOISE, next to the numbers of the leaves, and from
  # the seed, next to the indices of the examples.
  PARTNER = 2**32 - 1
  UNCERTAINTY = 2**32 - 2


def example_keys(seed: Any, index: Num[Array | np.ndarray, 'b']) -> Keys:
  """fold_in(key(seed), index[j]), the key of example j; seed and index are uint32."""
  key = jax.random.key(jnp.asarray(seed, jnp.uint32))
  return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def fold(keys: Keys, stream: Stream) -> Keys:
  """The keys of one stream: fold_in(keys[j], stream) for every example j. Raises as `check_keys`."""
  check_keys(keys)
  return jax.vmap(lambda key: jax.random.fold_in(key, np.uint32(stream)))(keys)


def fold_number(keys: Keys, number: Any) -> Keys:
  """fold_in(keys[j], number), the keys of one step, probe or block; number is one for all, or [b].

  Only for keys that belong to a stream: a number and a stream may be equal. Raises as `check_keys`.
  """
  check_keys(keys)
  return jax.vmap(jax.random.fold_in, in_axes=(0, 0 if jnp.ndim(number) else None))(keys, number)


def square_norm(z: Data) -> Float[Array, 'b']:
  """|z|^2 per example, over all elements of all leaves, in float32 or wider."""
  return inner(z, z)


def inner(a: Data, b: Data) -> Float[Array, 'b']:
  """a . b per example, over all elements of all leaves, in float32 or wider."""
  def leaf(a, b):
    wide = jnp.promote_types(jnp.promote_types(a.dtype, b.dtype), jnp.float32)
    return jnp.sum(rows(a.astype(wide) * b.astype(wide)), axis=1)
  return sum(map(leaf, jax.tree.leaves(a), jax.tree.leaves(b)))


def rows(a: Any) -> Any:
  """a [b, ...] as [b, d], d its elements of one example; b may be 0, where -1 has no meaning."""
  return a.reshape(a.shape[0], math.prod(a.shape[1:]))


def num_elements(z: Data) -> int:
  """The number of elements of one example, over all leaves."""
  return sum(math.prod(a.shape[1:]) for a in jax.tree.leaves(z))


def pytree(value: Any) -> Any:
  """value with every function in it as a Partial, at any depth: an argument of compiled functions.

  The numbers that are bound to a function are then arguments too, so another number does not
  compile again. Goes through partials, tuples, lists, dicts and registered pytrees.
  """
  def leaf(a):
    if isinstance(a, functools.partial):
      return pytree(Partial(a.func, *a.args, **a.keywords))
    return Partial(a) if callable(a) and not isinstance(a, type) else a

  return jax.tree.map(leaf, value)


def forward_only(name: str, tree: PyTree) -> PyTree:
  """The tree of numbers. Raises ValueError in reverse mode, which a loop of unknown length lacks."""
  return jax.tree.map(lambda a: _forward_only.bind(a, name=name), tree)


_forward_only = Primitive('forward_only')
_forward_only.def_impl(lambda a, *, name: a)
_forward_only.def_abstract_eval(lambda a, *, name: a)
mlir.register_lowering(_forward_only, lambda context, a, *, name: [a])
batching.defvectorized(_forward_only)


def _reversed(cotangent, a, *, name):
  raise ValueError(f'{name} is differentiable in forward mode only, since its number of steps depends '
                   'on the samples: use jax.jvp or jax.jacfwd, or a fixed number of steps')


ad.deflinear2(_forward_only, _reversed)


def is_traced(*trees: Any) -> bool:
  """Whether any leaf is a tracer, with a value that the host cannot read."""
  return any(isinstance(a, jax.core.Tracer) for a in jax.tree.leaves(trees))


def name_of(function: Any) -> str:
  """The name of a function, for messages; looks through Partials."""
  while isinstance(function, functools.partial):
    function = function.func
  return getattr(function, '__name__', repr(function))


@jax.tree_util.register_static
class Static:
  """A value that is fixed at trace time inside a Partial, compared by ==."""

  def __init__(self, value: Any):
    self.value = value

  def __eq__(self, other):
    return isinstance(other, Static) and self.value == other.value

  def __hash__(self):
    return hash(self.value)

  def __repr__(self):
    return f'Static({self.value!r})'
