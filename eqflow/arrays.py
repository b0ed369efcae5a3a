"""Shapes, broadcasting and per-example noise: what every other file needs to know about arrays.

Data is a pytree of arrays with a leading batch axis b; coefficients (alpha, sigma, weights, step
sizes) are scalars or [b]. `combine` is the one place where the two meet.
"""

import functools
import types
from typing import Any

import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Key, Num, PyTree, Shaped
import numpy as np

Data = PyTree[Num[Array | np.ndarray, 'b ...']]
# Times and coefficients: one number for all examples, or one for each.
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
    if not jnp.issubdtype(leaves[0].dtype, jnp.floating):
      raise TypeError(f'data must be floating, not {leaves[0].dtype}: cast it, '
                      'for example with x.astype(jnp.float32)')
    total = sum(expand(c, a) * a for c, a in zip(coefs, leaves))
    return total.astype(leaves[0].dtype)

  return jax.tree.map(leaf, *trees)


def where(condition: Any, tree: PyTree, other: PyTree) -> PyTree:
  """The tree where `condition` (a scalar or [b]) is true, else `other`, leaf by leaf."""
  return jax.tree.map(lambda a, b: jnp.where(expand(condition, a), a, b), tree, other)


def check_alike(name: str, tree: Any, other_name: str, other: Any) -> None:
  """Raises ValueError unless `tree` and `other` agree in structure and leaf shapes, naming both.

  Silent broadcasting has the right shape and the wrong loss.
  """
  if jax.tree.structure(tree) != jax.tree.structure(other):
    raise ValueError(f'{name} has the structure {jax.tree.structure(tree)} for {other_name} with '
                     f'{jax.tree.structure(other)}: they must be alike')
  for path, a, b in zip(_paths(tree), jax.tree.leaves(tree), jax.tree.leaves(other)):
    if jnp.shape(a) != jnp.shape(b):
      at = f' at {path}' if path else ''
      raise ValueError(f'{name} {jnp.shape(a)} for {other_name} {jnp.shape(b)}{at}: '
                       'the shapes must be equal')


def check_numbers(name: str, value: Any, z: Data) -> None:
  """Raises ValueError unless `value` is one number for each example of z, naming it."""
  b = batch_size(z)
  if jnp.shape(value) != (b,):
    raise ValueError(f'{name} has the shape {jnp.shape(value)}: one number for each of {b} examples')


def _paths(tree):
  return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def batch_size(z: Data) -> int:
  """b, the length of the leading axis of every leaf of z."""
  return jax.tree.leaves(z)[0].shape[0]


def noise_like(keys: Keys, z: Data) -> Data:
  """eps ~ N(0, I), shaped and typed as z; example j draws from keys[j] alone, leaf i from a fold.

  So an example's noise does not depend on the batch, the device or the process it stands on.
  """
  leaves, structure = jax.tree.flatten(z)
  if keys.shape != (batch_size(z),):
    raise ValueError(f'keys of shape {keys.shape} for {batch_size(z)} examples: give one key each, '
                     f'such as jax.random.split(key, {batch_size(z)})')

  def leaf(i, a):
    draw = lambda key: jax.random.normal(jax.random.fold_in(key, i), a.shape[1:], a.dtype)
    return jax.vmap(draw)(keys)

  return jax.tree.unflatten(structure, [leaf(i, a) for i, a in enumerate(leaves)])


def fold(keys: Keys, number: Any) -> Keys:
  """fold_in(keys[j], number) for every example j; number is one for all, or [b]."""
  return jax.vmap(jax.random.fold_in, in_axes=(0, 0 if jnp.ndim(number) else None))(keys, number)


def square_norm(z: Data) -> Float[Array, 'b']:
  """|z|^2 per example, over all coordinates of all leaves, in float32 or wider."""
  return inner(z, z)


def inner(a: Data, b: Data) -> Float[Array, 'b']:
  """a . b per example, over all coordinates of all leaves, in float32 or wider."""
  def leaf(a, b):
    wide = jnp.promote_types(jnp.promote_types(a.dtype, b.dtype), jnp.float32)
    return jnp.sum((a.astype(wide) * b.astype(wide)).reshape(a.shape[0], -1), axis=1)
  return sum(map(leaf, jax.tree.leaves(a), jax.tree.leaves(b)))


def coordinates(z: Data) -> int:
  """The number of coordinates of one example, over all leaves."""
  return sum(a[0].size if a.ndim > 1 else 1 for a in jax.tree.leaves(z))


def pytree(function: Any) -> Partial:
  """The function as a Partial, so that its bound numbers are arguments of what is compiled.

  So are the plain functions that it binds.
  """
  if not isinstance(function, functools.partial):
    return Partial(function)
  bound = {name: pytree(value) if isinstance(value, types.FunctionType) else value
           for name, value in function.keywords.items()}
  return Partial(function.func, *function.args, **bound)


def is_traced(*trees: Any) -> bool:
  """Whether any leaf is a tracer, so that no number can be read on the host."""
  return any(isinstance(a, jax.core.Tracer) for a in jax.tree.leaves(trees))


def name_of(function: Any) -> str:
  """The name a person knows a function by; looks through Partials."""
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
