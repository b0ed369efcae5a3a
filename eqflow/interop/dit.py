"""The published transformers, read and written: EqM, SiT and DiT share their keys and their shapes.

| field | of | what is learned, in our sign | what its network is told | its use |
|---|---|---|---|---|
| `eqm` | EqM | `equilibrium`: theirs, negated | 0 at every t | descent; energies of it |
| `velocity` | SiT | `u`: theirs, negated | 1 - t | solvers, on SiT's process |
| `eps` | DiT | `eps`: theirs | 1000 t - 1 | solvers, on DDPM's table of 1,000 |

Where theirs is negated, the last layer is, so params are those of an eqflow network. Files are
safetensors; `convert` makes them of torch's own.
"""

import collections
from collections.abc import Callable
import math
import re
from typing import Any, NamedTuple

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
  """The vector of ours that theirs is, up to this sign, and the label of noise at our t."""
  sign: int
  label_noise: Callable


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
  """(apply, params), apply(params, z [b, h, w, c], t [b], label [b]) -> y as z: our time, our sign.

  input_size is the side of z (a 256x256 image has latents of 32), num_heads what shapes do not tell;
  `Partial(apply, params)` is a Network. The last row of the class table is taken for the null label,
  which label None stands for; a table that was trained without one has as many rows as num_classes,
  and then None is refused. Labels beyond the table are refused too, unless they are traced. Params
  keep the file's dtype; apply computes in float32. Tensors are read one at a time.

  Raises ValueError where path is no safetensors file (a pickle is never opened), where tensors are
  missing, unknown or misshapen, with all of them, and where a number or name does not fit.
  """
  files.one_of('field', field, FIELDS)
  sign, label_noise = FIELDS[field]
  sizes = _described(path, num_classes)
  _check(sizes, input_size, num_heads)
  params = {ours: jnp.asarray(_signed(_to_ours(files.read(path, key), ours), ours, sign))
            for key, (ours, _) in _layout(sizes).items()}
  network = DiT(patch=sizes.patch, width=sizes.width, depth=sizes.depth, heads=num_heads,
                mlp_ratio=sizes.hidden / sizes.width, num_classes=sizes.rows - 1,
                doubled=sizes.made == 2 * sizes.patch**2 * sizes.channels)
  apply = arrays.pytree(Partial(
      _apply, network=arrays.Static(network), label_noise=label_noise,
      shape=arrays.Static((input_size, input_size, sizes.channels)),
      null=arrays.Static(num_classes is None or num_classes < sizes.rows)))
  return apply, traverse_util.unflatten_dict(params)


# That t and label are [b] is checked inside, to be said with what to do.
def _apply(params: PyTree, z: Float[Array, 'b h w c'], t: Float[ArrayLike, '...'],
           label: Int[ArrayLike, '...'] | None = None, *, network: Any, label_noise: Any, shape: Any,
           null: Any) -> Float[Array, 'b h w c']:
  if z.shape[1:] != shape.value:
    raise ValueError(f'z has the shape {z.shape}, the checkpoint is of [b, h, w, c] with '
                     f'{shape.value}: load it with another input_size, or transpose z')
  if label is None and not null.value:
    raise ValueError('label=None is the null label, and this class table has no row for it')
  _check_examples(len(z), t, label, network.value.num_classes + 1)
  bound = Partial(network.value.apply, {'params': params})
  return fields.conditioned(bound, processes.linear, scale_input=fields.unit,
                            label_noise=label_noise)(z, t, label)


def _check_examples(b, t, label, rows):
  for name, a in (('t', t), ('label', label)):
    if a is not None and jnp.shape(a) != (b,):
      raise ValueError(f'{name} has the shape {jnp.shape(a)}, z holds {b} images: give one number for '
                       f'each, of shape ({b},), such as jnp.full({b}, {name})')
  if label is None or arrays.is_traced(label):
    return
  # A row beyond the table is read as NaN, and a negative one from its end.
  label = np.asarray(label)
  if not np.issubdtype(label.dtype, np.integer):
    raise ValueError(f'label is {label.dtype}: give the number of a class as a whole number')
  if (wrong := label[(label < 0) | (label >= rows)]).size:
    raise ValueError(f'label holds {sorted(set(wrong.tolist()))}, the class table has the rows 0 to '
                     f'{rows - 1}: give labels of these, or None for the null label')


def export(params: PyTree, path: files.Path, *, channels: int, field: str = 'eqm') -> None:
  """Writes the params of a DiT as `load` reads them, bit for bit: the inverse, for images of channels.

  field says which sign they have and which noise label they were trained with. Raises ValueError
  where params have no place in the layout (learned positions, no classes), with all such names,
  where channels do not fit, and where path exists.
  """
  files.one_of('field', field, FIELDS)
  flat = traverse_util.flatten_dict(params)
  depth = sum(name.startswith('block_') for name in params) or 1
  names = {ours for ours, _ in _layout(Sizes(1, depth)).values()}
  if wrong := names ^ set(flat):
    said = (f'{"missing" if ours in names else "no place for"} {"/".join(ours)}' for ours in wrong)
    raise ValueError('these params are no published DiT:\n  ' + '\n  '.join(sorted(said)))
  if channels < 1:
    raise ValueError(f'channels={channels}: give those of the images, 1 or more')
  entries, width = flat['patch_embed', 'kernel'].shape
  patch = math.isqrt(entries // channels)
  if patch**2 * channels != entries:
    raise ValueError(f'channels={channels}: a patch of this network has {entries} numbers, which '
                     f'is no square of patches of {channels} channels')
  sizes = Sizes(width, depth, len(flat['block_0', 'up', 'bias']), patch, channels,
                len(flat['final', 'bias']), len(flat['classes', 'table', 'embedding']),
                len(flat['fixed_positions',]))
  layout, sign = _layout(sizes), FIELDS[field].sign
  wrong = [f"{'/'.join(ours)} is {list(flat[ours].shape)}" for ours, shape in layout.values()
           if np.size(flat[ours]) != math.prod(shape) or (
               len(shape) < 3 and flat[ours].shape != (shape[::-1] if ours[-1] == 'kernel' else shape))]
  if wrong:
    raise ValueError(f'these params are no DiT of width {width}:\n  ' + '\n  '.join(wrong))
  files.write(path, {
      key: _to_theirs(_signed(np.asarray(flat[ours]), ours, sign), ours, shape)
      for key, (ours, shape) in layout.items()})


class Sizes(NamedTuple):
  """What shapes tell, None where they do not: `hidden` of an MLP, `made` of the last layer, `rows`."""
  width: int
  depth: int
  hidden: int | None = None
  patch: int | None = None
  channels: int | None = None
  made: int | None = None
  rows: int | None = None
  positions: int | None = None


def _described(path, num_classes):
  """The sizes of a file that has the layout, nothing of which is read but its header."""
  shapes, dtypes = files.described(path)
  sizes = _sizes(path, shapes, num_classes)
  wrong = files.differences({key: shape for key, (_, shape) in _layout(sizes).items()}, shapes, dtypes)
  if wrong:
    raise ValueError(f'{path}: of EqM, SiT or DiT at width {sizes.width} and depth {sizes.depth} it '
                     f'would differ in {len(wrong)} tensors:\n  ' + '\n  '.join(wrong))
  return sizes


def _sizes(path, shapes, num_classes):
  leading = collections.Counter(shape[0] for shape in shapes.values() if shape)
  if not leading:
    raise ValueError(f'{path} holds no tensors')
  # Most tensors of a block lead with the width, so that a misshapen one does not make it another.
  width = leading.most_common(1)[0][0]
  depth = _depth(shapes)
  axis = lambda key, rank: shapes[key] if len(shapes.get(key, ())) == rank else (None,) * rank
  # What most tensors of most blocks say, for the same reason.
  told = collections.Counter(n for i in range(depth) for n in (
      axis(f'blocks.{i}.mlp.fc1.weight', 2)[0], axis(f'blocks.{i}.mlp.fc1.bias', 1)[0],
      axis(f'blocks.{i}.mlp.fc2.weight', 2)[1]) if n is not None)
  hidden = told.most_common(1)[0][0] if told else None
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
  """One more than the last block: one that is missing before it is missing, not another depth."""
  names = '|'.join(re.escape(key.removeprefix('blocks.0.')) for key in _layout(Sizes(1, 1))
                   if key.startswith('blocks.0.'))
  found = (re.fullmatch(rf'blocks\.([0-9]{{1,6}})\.(?:{names})', key) for key in shapes)
  # A stray name of a far block is unknown; as the depth it would make a report without end.
  return max((1 + int(match[1]) for match in found if match and int(match[1]) < len(shapes)),
             default=1)


def _layout(sizes):
  """{their key: (the path of ours, their shape)}."""
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
    # A patch is (channel, row, column) there, (row, column, channel) here.
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
    raise ValueError(f'num_heads={num_heads} does not divide the width {sizes.width}: the published '
                     'sizes S, B, L and XL have 6, 12, 16 and 16 heads')
  patch, positions = sizes.patch, sizes.positions
  if input_size % patch or (input_size // patch) ** 2 != positions:
    raise ValueError(f'input_size={input_size}: pos_embed has {positions} positions of patches of '
                     f'{patch}x{patch}, an image of side {math.sqrt(positions) * patch:g}')
