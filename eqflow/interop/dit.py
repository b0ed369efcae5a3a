"""Reads and writes the published transformers EqM, SiT and DiT, which share their keys and shapes.

| field | project | our output | noise conditioning | use |
|---|---|---|---|---|
| `eqm` | EqM | `equilibrium`, minus theirs | 0 at every t | descent; energies |
| `velocity` | SiT | `u`, minus theirs | 1 - t | solvers, on SiT's process |
| `eps` | DiT | `eps`, theirs | 1000 t - 1 | solvers, on DDPM's table of 1,000 |

Where the sign differs, `load` negates the last layer: the params then fit our output. Files are
safetensors; `convert` writes them from torch checkpoints.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
import math
import re
from typing import NamedTuple

from flax import traverse_util
from jax import numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Int, PyTree
import numpy as np

from eqflow import arrays, fields, processes
from eqflow.interop import files
from eqflow.models.dit import DiT

Apply = Callable[[PyTree, Array, Array, Array | None], Array]


class Field(NamedTuple):
  """Our output over theirs (+1 or -1), and the noise conditioning at our t."""
  sign: int
  c_noise: Callable


def _reversed(process, t):
  """Noise conditioning 1 - t: SiT's time runs from noise to data."""
  return 1 - t


FIELDS = {
  'eqm':      Field(-1, fields.none),
  'velocity': Field(-1, _reversed),
  'eps':      Field(+1, fields.table_index),
}


def load(path: files.Path, *, input_size: int, num_heads: int, field: str = 'eqm',
         num_classes: int | None = None) -> tuple[Apply, PyTree]:
  """(apply, params), apply(params, z [b, h, w, c], t [b], label [b]) -> y like z: our time, our sign.

  `Partial(apply, params)` is a Network. input_size is the side of z (32 for the latents of a 256x256
  image); num_heads cannot be read from shapes. The last row of the class table is the null label, as
  is label=None. A table without a null label has num_classes rows: pass num_classes, and label=None
  raises. Labels outside the table raise too, unless they are traced. Params keep the dtype of the
  file; apply computes in float32. Tensors are read one at a time.

  Raises ValueError if path is not a safetensors file (a pickle is never opened), with a list of all
  missing, unknown and misshapen tensors, and if an argument does not fit.
  """
  files.one_of('field', field, FIELDS)
  sign, c_noise = FIELDS[field]
  sizes = _described(path, num_classes)
  _check(sizes, input_size, num_heads)
  params = {ours: jnp.asarray(_signed(_to_ours(files.read(path, key), ours), ours, sign))
            for key, (ours, _) in _layout(sizes).items()}
  network = DiT(patch=sizes.patch, width=sizes.width, depth=sizes.depth, heads=num_heads,
                mlp_ratio=sizes.hidden / sizes.width, num_classes=sizes.rows - 1,
                doubled=sizes.made == 2 * sizes.patch**2 * sizes.channels)
  apply = arrays.pytree(Partial(
      _apply, network=arrays.Static(network), c_noise=c_noise,
      shape=arrays.Static((input_size, input_size, sizes.channels)),
      null=arrays.Static(num_classes is None or num_classes < sizes.rows)))
  return apply, traverse_util.unflatten_dict(params)


# Shapes of t and label are checked inside, so that the message can say what to do.
def _apply(params: PyTree, z: Float[Array, 'b h w c'], t: Float[ArrayLike, '...'],
           label: Int[ArrayLike, '...'] | None = None, *, network: arrays.Static,
           c_noise: Callable, shape: arrays.Static, null: arrays.Static) -> Float[Array, 'b h w c']:
  if z.shape[1:] != shape.value:
    raise ValueError(f'z has shape {z.shape}, but the checkpoint takes [b, h, w, c] with (h, w, c)='
                     f'{shape.value}: load it with another input_size, or transpose z')
  if label is None and not null.value:
    raise ValueError('label=None is the null label, for which the class table has no row: give labels')
  _check_examples(len(z), t, label, network.value.num_classes + 1)
  bound = Partial(network.value.apply, {'params': params})
  return fields.conditioned(bound, processes.linear, scale_input=fields.unit,
                            c_noise=c_noise)(z, t, label)


def _check_examples(b, t, label, rows):
  for name, a in (('t', t), ('label', label)):
    if a is not None and jnp.shape(a) != (b,):
      raise ValueError(f'{name} has shape {jnp.shape(a)} for {b} images z: give one number for each '
                       f'image, such as jnp.full({b}, {name})')
  if label is None or arrays.is_traced(label):
    return
  # A label beyond the table would give NaN, a negative label would count from the end.
  label = np.asarray(label)
  if not np.issubdtype(label.dtype, np.integer):
    raise ValueError(f'label has dtype {label.dtype}: give integers')
  if (wrong := label[(label < 0) | (label >= rows)]).size:
    raise ValueError(f'label contains {sorted(set(wrong.tolist()))}: give 0 to {rows - 1}, the rows of '
                     'the class table, or None for the null label')


def export(params: PyTree, path: files.Path, *, channels: int, field: str = 'eqm') -> None:
  """Writes the params of a DiT for images with `channels`: the inverse of `load`, bit for bit.

  field sets their sign and the noise conditioning that they were trained with. Raises ValueError for
  params that the layout lacks (learned positions, no classes), with all their names; if channels do
  not fit; and if path exists.
  """
  files.one_of('field', field, FIELDS)
  flat = traverse_util.flatten_dict(params)
  depth = sum(name.startswith('block_') for name in params) or 1
  names = {ours for ours, _ in _layout(Sizes(1, depth)).values()}
  if wrong := names ^ set(flat):
    said = (f'{"missing" if ours in names else "no place for"} {"/".join(ours)}' for ours in wrong)
    raise ValueError('the published DiT has other params:\n  ' + '\n  '.join(sorted(said)))
  if channels < 1:
    raise ValueError(f'channels={channels}: give the channels of the images, 1 or more')
  entries, width = flat['patch_embed', 'kernel'].shape
  patch = math.isqrt(entries // channels)
  if patch**2 * channels != entries:
    raise ValueError(f'channels={channels} do not fit: a patch has {entries} numbers, which must be '
                     'channels times a square')
  sizes = Sizes(width, depth, len(flat['block_0', 'up', 'bias']), patch, channels,
                len(flat['final', 'bias']), len(flat['classes', 'table', 'embedding']),
                len(flat['fixed_positions',]))
  layout, sign = _layout(sizes), FIELDS[field].sign
  wrong = [f"{'/'.join(ours)} is {list(flat[ours].shape)}" for ours, shape in layout.values()
           if np.size(flat[ours]) != math.prod(shape) or (
               len(shape) < 3 and flat[ours].shape != (shape[::-1] if ours[-1] == 'kernel' else shape))]
  if wrong:
    raise ValueError(f'the DiT of width {width} has other shapes:\n  ' + '\n  '.join(wrong))
  files.write(path, {
      key: _to_theirs(_signed(np.asarray(flat[ours]), ours, sign), ours, shape)
      for key, (ours, shape) in layout.items()})


class Sizes(NamedTuple):
  """Sizes read from shapes, None if unknown. hidden: of the MLPs; made: outputs of the last layer."""
  width: int
  depth: int
  hidden: int | None = None
  patch: int | None = None
  channels: int | None = None
  made: int | None = None
  rows: int | None = None
  positions: int | None = None


def _described(path, num_classes):
  """The Sizes of a file, from its header; raises ValueError if its tensors do not fit them."""
  shapes, dtypes = files.described(path)
  sizes = _sizes(path, shapes, num_classes)
  wrong = files.differences({key: shape for key, (_, shape) in _layout(sizes).items()}, shapes, dtypes)
  if wrong:
    raise ValueError(f'{path} differs in {len(wrong)} tensors from an EqM, SiT or DiT of width '
                     f'{sizes.width} and depth {sizes.depth}:\n  ' + '\n  '.join(wrong))
  return sizes


def _sizes(path, shapes, num_classes):
  leading = collections.Counter(shape[0] for shape in shapes.values() if shape)
  if not leading:
    raise ValueError(f'{path} contains no tensors')
  # The most frequent leading size is the width, even if one tensor is misshapen.
  width = leading.most_common(1)[0][0]
  depth = _depth(shapes)
  axis = lambda key, rank: shapes[key] if len(shapes.get(key, ())) == rank else (None,) * rank
  # A majority of all blocks, for the same reason.
  found = collections.Counter(n for i in range(depth) for n in (
      axis(f'blocks.{i}.mlp.fc1.weight', 2)[0], axis(f'blocks.{i}.mlp.fc1.bias', 1)[0],
      axis(f'blocks.{i}.mlp.fc2.weight', 2)[1]) if n is not None)
  hidden = found.most_common(1)[0][0] if found else None
  _, channels, patch, _ = axis('x_embedder.proj.weight', 4)
  made, _ = axis('final_layer.linear.weight', 2)
  rows, _ = axis('y_embedder.embedding_table.weight', 2)
  _, positions, _ = axis('pos_embed', 3)
  if patch is not None and made != patch**2 * channels:
    made = 2 * patch**2 * channels
  if num_classes is not None and rows != num_classes:
    rows = num_classes + 1
  return Sizes(width, depth, hidden, patch, channels, made, rows, positions)


def _depth(shapes):
  """The index of the last block plus 1; earlier blocks may be missing."""
  names = '|'.join(re.escape(key.removeprefix('blocks.0.')) for key in _layout(Sizes(1, 1))
                   if key.startswith('blocks.0.'))
  found = (re.fullmatch(rf'blocks\.([0-9]{{1,6}})\.(?:{names})', key) for key in shapes)
  # A stray key with a huge index is not a block: all blocks before it would be reported missing.
  return max((1 + int(match[1]) for match in found if match and int(match[1]) < len(shapes)),
             default=1)


def _layout(sizes):
  """{their key: (our path, their shape)}."""
  d = sizes.width
  layers = {'t_embedder.mlp.0': (('noise', 'up'), (d, 256)),
            't_embedder.mlp.2': (('noise', 'out'), (d, d))}
  block = {'attn.qkv': ('qkv', (3 * d, d)), 'attn.proj': ('attended', (d, d)),
           'mlp.fc1': ('up', (sizes.hidden, d)), 'mlp.fc2': ('down', (d, sizes.hidden)),
           'adaLN_modulation.1': ('modulation', (6 * d, d))}
  for i in range(sizes.depth):
    layers |= {f'blocks.{i}.{theirs}': ((f'block_{i}', ours), shape)
               for theirs, (ours, shape) in block.items()}
  layers |= {'final_layer.adaLN_modulation.1': (('final_modulation',), (2 * d, d)),
             'final_layer.linear': (('final',), (sizes.made, d))}
  layout = {
    'pos_embed': (('fixed_positions',), (1, sizes.positions, d)),
    'x_embedder.proj.weight': (('patch_embed', 'kernel'),
                               (d, sizes.channels, sizes.patch, sizes.patch)),
    'x_embedder.proj.bias': (('patch_embed', 'bias'), (d,)),
    'y_embedder.embedding_table.weight': (('classes', 'table', 'embedding'), (sizes.rows, d)),
  }
  for theirs, (ours, shape) in layers.items():
    layout[f'{theirs}.weight'] = (*ours, 'kernel'), shape
    layout[f'{theirs}.bias'] = (*ours, 'bias'), shape[:1]
  return layout


def _to_ours(a, ours):
  if a.ndim == 3:
    return a[0]
  if a.ndim == 4:
    # Their patch is (channel, row, column), ours is (row, column, channel).
    a = a.transpose(2, 3, 1, 0).reshape(-1, len(a))
  elif ours[-1] == 'kernel':
    a = a.T
  return np.ascontiguousarray(a)


def _to_theirs(a, ours, shape):
  if len(shape) == 3:
    a = a[None]
  elif len(shape) == 4:
    width, channels, rows, columns = shape
    a = a.reshape(rows, columns, channels, width).transpose(3, 2, 0, 1)
  elif ours[-1] == 'kernel':
    a = a.T
  return np.ascontiguousarray(a)


def _signed(a, ours, sign):
  return -a if ours[0] == 'final' and sign < 0 else a


def _check(sizes, input_size, num_heads):
  if num_heads < 1 or sizes.width % num_heads:
    raise ValueError(f'num_heads={num_heads} does not divide the width {sizes.width}: use 6 for S, 12 '
                     'for B, 16 for L and XL')
  patch, positions = sizes.patch, sizes.positions
  if input_size % patch or (input_size // patch) ** 2 != positions:
    raise ValueError(f'input_size={input_size} does not fit {positions} patches of {patch}x{patch}: '
                     f'use {math.sqrt(positions) * patch:g}')
