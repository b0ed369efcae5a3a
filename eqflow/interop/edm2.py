"""EDM2's published networks, read and written, from safetensors with the reference's key names.

The reference stores pickles that run code when opened, so eqflow opens none. In the reference's own
environment, after `import pickle, safetensors.torch`, two lines write what `load` reads:

    net = pickle.load(open('edm2-img512-s-2147483-0.130.pkl', 'rb'))['ema'].float()
    safetensors.torch.save_file(net.state_dict(), 'edm2-img512-s.safetensors')

`net.init_kwargs` are the options of `load`.
"""

from collections.abc import Callable, Sequence
import re
from typing import Any

from flax import traverse_util
import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree
import numpy as np

from eqflow import arrays
from eqflow.arrays import Number
from eqflow.interop import files
from eqflow.models import magnitude
from eqflow.models.edm2 import EDM2

Apply = Callable[[PyTree, Array, Array, Array | None], Array]


def load(path: files.Path, *, img_resolution: int, img_channels: int, label_dim: int,
         model_channels: int = 192, channel_mult: Sequence[Number] = (1, 2, 3, 4),
         channel_mult_noise: Number | None = None, channel_mult_emb: Number | None = None,
         num_blocks: int = 3, attn_resolutions: Sequence[int] = (16, 8),
         label_balance: Number = 0.5, concat_balance: Number = 0.5, res_balance: Number = 0.3,
         attn_balance: Number = 0.3, clip_act: Number | None = 256, channels_per_head: int = 64,
         resample_filter: Sequence[Number] = (1, 1), logvar_channels: int = 128,
         dropout: Number = 0.0, use_fp16: bool = True,
         sigma_data: Number = 0.5) -> tuple[Apply, PyTree]:
  """(apply, params), apply(params, x_in [b, h, w, c], c_noise [b], label_vectors [b, label_dim]) -> F.

  F in evaluation mode, float32: of the input scaled by c_in, of ln(sigma)/4, of one-hot labels (None:
  of zeros). Options have the names and defaults of the reference's constructors; dropout, use_fp16
  and sigma_data are taken with them and change nothing of F. `params['uncertainty']` are those of a
  `magnitude.LogVariance`, u(c_noise). As a Network of ours: output `edm` of sigma_data, on
  `processes.edm`, `unit_variance` of sigma_data and `quarter_log_sigma`; apply takes classes [b] too.
  Tensors are read one at a time and keep the file's dtype.

  Raises ValueError where path is no safetensors file (a pickle is never opened), where tensors are
  missing, unknown or misshapen, with all of them, and where the options make no network.
  """
  _check_options(
      whole=dict(img_resolution=img_resolution, img_channels=img_channels, label_dim=label_dim + 1,
                 model_channels=model_channels, num_blocks=num_blocks, logvar_channels=logvar_channels,
                 channels_per_head=channels_per_head) | {
                     f'channel_mult[{i}]': factor for i, factor in enumerate(channel_mult)},
      shares=dict(label_balance=label_balance, concat_balance=concat_balance, res_balance=res_balance,
                  attn_balance=attn_balance))
  if not len(channel_mult) or clip_act is not None and not clip_act > 0:
    raise ValueError(f'channel_mult={tuple(channel_mult)}, clip_act={clip_act}: give one multiplier or '
                     'more, and a clip_act above 0, or None')
  network = EDM2(
      width=model_channels, multipliers=tuple(channel_mult), blocks=num_blocks,
      attention=tuple(attn_resolutions), head_width=channels_per_head, num_classes=label_dim,
      noise_multiplier=channel_mult_noise, embedding_multiplier=channel_mult_emb,
      label_balance=label_balance, concat_balance=concat_balance, res_balance=res_balance,
      attn_balance=attn_balance, clip=clip_act, resample_filter=tuple(resample_filter))
  expected = _expected(network, (img_resolution, img_resolution, img_channels), logvar_channels)
  shapes, dtypes = files.described(path)
  layout = {_key(ours): _transposed(shape) for ours, shape in expected.items()}
  if wrong := files.differences(layout, shapes, dtypes):
    raise ValueError(f'{path}: the EDM2 of these options differs in {len(wrong)} tensors:\n  '
                     + '\n  '.join(wrong))
  params = {ours: jnp.asarray(_to_ours(files.read(path, _key(ours)))) for ours in expected}
  apply = Partial(_apply, network=arrays.Static(network),
                  shape=arrays.Static((img_resolution, img_resolution, img_channels)))
  return apply, traverse_util.unflatten_dict(params)


def _check_options(whole, shares):
  for name, number in whole.items():
    if not number >= 1 or number != int(number):
      raise ValueError(f'{name}={number}: give a whole number that makes a network')
  for name, number in shares.items():
    if not 0 <= number <= 1:
      raise ValueError(f'{name}={number}: give a share from 0 to 1')


def _apply(params: PyTree, x_in: Float[Array, 'b h w c'], c_noise: Float[Array, 'b'],
           label_vectors: Any = None, *, network: Any, shape: Any) -> Float[Array, 'b h w c']:
  if x_in.shape[1:] != shape.value:
    raise ValueError(f'x_in has the shape {x_in.shape}, the checkpoint is of [b, h, w, c] with '
                     f'{shape.value}: load it with another img_resolution, or transpose x_in')
  b, classes = len(x_in), network.value.num_classes
  c_noise = jnp.asarray(c_noise)
  if c_noise.shape != (b,):
    raise ValueError(f'c_noise has the shape {c_noise.shape}, x_in holds {b} images: give one ln(sigma)'
                     f'/4 for each, of shape ({b},)')
  if label_vectors is not None:
    _check_labels(label_vectors, b, classes)
    # A network without classes is given vectors of none.
    label_vectors = None if jnp.shape(label_vectors) == (b, 0) else jnp.asarray(label_vectors)
  return network.value.apply({'params': params}, x_in.astype(jnp.float32), c_noise, label_vectors)


def _check_labels(labels, b, classes):
  shape = jnp.shape(labels)
  if shape not in {(b,), (b, classes)}:
    raise ValueError(f'label_vectors has the shape {shape}: give one-hot vectors of shape ({b}, '
                     f'{classes}), or classes of shape ({b},)')
  if len(shape) == 1:
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
      raise ValueError(f'label_vectors of shape {shape} are classes, and {jnp.result_type(labels)} is '
                       'no type of whole numbers')
    # One that is not there would be read as none.
    known = not arrays.is_traced(labels)
    wrong = {int(y) for y in np.asarray(labels) if not 0 <= y <= classes} if known else set()
    if wrong:
      raise ValueError(f'label_vectors holds the classes {sorted(wrong)}: give 0 to {classes - 1}, or '
                       f'{classes} or None for none')


def export(params: PyTree, path: files.Path) -> None:
  """Writes the params of an EDM2 as `load` reads them, bit for bit: the inverse.

  Raises ValueError where params are of another network, naming what has no place, and where path
  exists.
  """
  flat = traverse_util.flatten_dict(params)
  try:
    expected = _expected(*_described({path: np.shape(a) for path, a in flat.items()}))
  except (KeyError, IndexError, ValueError) as error:
    raise ValueError(f'these params are no EDM2, whose sizes cannot be told ({error}): '
                     f'{sorted("/".join(path) for path in flat)[:10]}') from error
  if ('uncertainty', 'linear', 'weight') not in flat:
    raise ValueError('these params have no uncertainty u(sigma), which the layout holds: give those of '
                     'a run with config.loss.uncertainty=128')
  name = lambda shapes: {'/'.join(path): shape for path, shape in shapes.items()}
  wrong = files.differences(name(expected), name({path: np.shape(a) for path, a in flat.items()}), {})
  if wrong:
    raise ValueError(f'these params are no EDM2; they differ in {len(wrong)} arrays:\n  '
                     + '\n  '.join(wrong))
  files.write(path, {_key(ours): _to_theirs(np.asarray(a)) for ours, a in flat.items()})


def _described(shapes):
  """(network, shape of its images, channels of the uncertainty) that {path: shape} are of."""
  sides = sorted({int(match[1]) for path in shapes
                  if (match := re.fullmatch(r'enc_(\d+)x\1_block0', path[0]))}, reverse=True)
  block = lambda side, i=0: f'enc_{side}x{side}_block{i}'
  made = lambda *path: shapes[*path, 'weight'][-1]
  features = shapes['emb_noise', 'weight']
  # Of width 1, multipliers are channels.
  network = EDM2(
      width=1, multipliers=tuple(made(block(side), 'conv_res0') for side in sides), blocks=sum(
          (block(sides[0], i), 'emb_gain') in shapes for i in range(len(shapes))), attention=tuple(
          side for side in sides if (block(side), 'attn_qkv', 'weight') in shapes),
      # Shapes are the same however many heads there are.
      head_width=1, num_classes=shapes.get(('emb_label', 'weight'), (0,))[0],
      noise_multiplier=features[0], embedding_multiplier=features[1])
  uncertainty = shapes.get(('uncertainty', 'linear', 'weight'), (1,))
  return network, (sides[0], sides[0], made('out_conv')), uncertainty[0]


def _expected(network, shape, logvar_channels):
  """{path: shape} of ours, the uncertainty among them."""
  def init():
    key = jax.random.key(0)
    params = network.init(key, jnp.zeros((1, *shape)), jnp.zeros(1))['params']
    uncertainty = magnitude.LogVariance(logvar_channels).init(key, jnp.zeros(1))['params']
    return params | {'uncertainty': uncertainty}
  return {path: a.shape for path, a in traverse_util.flatten_dict(jax.eval_shape(init)).items()}


def _key(ours):
  """('enc_8x8_down', 'conv_res0', 'weight') -> 'unet.enc.8x8_down.conv_res0.weight'."""
  first, *rest = (name.removeprefix('fixed_') for name in ours)
  if first == 'uncertainty':
    return '.'.join([f'logvar_{rest[0]}', *rest[1:]])
  side, _, block = first.partition('_')
  return '.'.join(['unet', *([side, block] if side in ('enc', 'dec') else [first]), *rest])


def _transposed(shape):
  """[..., cin, cout] of ours as [cout, cin, ...] of theirs."""
  return shape[::-1] if len(shape) < 3 else (shape[3], shape[2], *shape[:2])


def _to_ours(a):
  return np.asarray(a.transpose(2, 3, 1, 0) if a.ndim == 4 else a.T, order='C')


def _to_theirs(a):
  return np.asarray(a.transpose(3, 2, 0, 1) if a.ndim == 4 else a.T, order='C')
