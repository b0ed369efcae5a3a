"""Reads and writes EDM2's published networks as safetensors with the key names of the reference.

The reference publishes pickles, which can run code, so eqflow does not open them. In the environment
of the reference, after `import pickle, safetensors.torch`, two lines write a file for `load`:

    net = pickle.load(open('edm2-img512-s-2147483-0.130.pkl', 'rb'))['ema'].float()
    safetensors.torch.save_file(net.state_dict(), 'edm2-img512-s.safetensors')

`net.init_kwargs` are the options of `load`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import re

from flax import traverse_util
import jax
from jax import numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Num, PyTree
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

  F in evaluation mode, in float32, from the input scaled by c_in, ln(sigma)/4 and one-hot labels
  (None: zeros); apply also takes classes [b]. Options have the names and defaults of the reference's
  constructors; dropout, use_fp16 and sigma_data are accepted and do not change F.
  `params['uncertainty']` are the params of a `magnitude.LogVariance`, u(c_noise). As our Network, use
  `fields.conditioned` with `unit_variance` and `quarter_log_sigma` on `processes.edm`; its output is
  `outputs.edm`. Tensors are read one at a time and keep the dtype of the file.

  Raises ValueError if path is not a safetensors file (a pickle is never opened), with a list of all
  missing, unknown and misshapen tensors, and if an option is out of range.
  """
  _check_options(
      whole=dict(img_resolution=img_resolution, img_channels=img_channels, label_dim=label_dim,
                 model_channels=model_channels, num_blocks=num_blocks, logvar_channels=logvar_channels,
                 channels_per_head=channels_per_head) | {
                     f'channel_mult[{i}]': factor for i, factor in enumerate(channel_mult)},
      shares=dict(label_balance=label_balance, concat_balance=concat_balance, res_balance=res_balance,
                  attn_balance=attn_balance))
  if not len(channel_mult) or clip_act is not None and not clip_act > 0:
    raise ValueError(f'channel_mult={tuple(channel_mult)}, clip_act={clip_act}: give at least one '
                     'multiplier, and clip_act > 0 or None')
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
    raise ValueError(f'{path} differs in {len(wrong)} tensors from the EDM2 of these options:\n  '
                     + '\n  '.join(wrong))
  params = {ours: jnp.asarray(_to_ours(files.read(path, _key(ours)))) for ours in expected}
  apply = Partial(_apply, network=arrays.Static(network),
                  shape=arrays.Static((img_resolution, img_resolution, img_channels)))
  return apply, traverse_util.unflatten_dict(params)


def _check_options(whole, shares):
  for name, number in whole.items():
    least = 0 if name == 'label_dim' else 1
    if not number >= least or number != int(number):
      raise ValueError(f'{name}={number}: give an integer of at least {least}')
  for name, number in shares.items():
    if not 0 <= number <= 1:
      raise ValueError(f'{name}={number}: give a number from 0 to 1')


def _apply(params: PyTree, x_in: Float[Array, 'b h w c'], c_noise: Float[Array, 'b'],
           label_vectors: Num[ArrayLike, '...'] | None = None, *, network: arrays.Static,
           shape: arrays.Static) -> Float[Array, 'b h w c']:
  if x_in.shape[1:] != shape.value:
    raise ValueError(f'x_in has shape {x_in.shape}, but the checkpoint takes [b, h, w, c] with '
                     f'(h, w, c)={shape.value}: load it with another img_resolution, or transpose x_in')
  b, classes = len(x_in), network.value.num_classes
  c_noise = jnp.asarray(c_noise)
  if c_noise.shape != (b,):
    raise ValueError(f'c_noise has shape {c_noise.shape} for {b} images x_in: give one '
                     'ln(sigma)/4 for each image')
  if label_vectors is not None:
    _check_labels(label_vectors, b, classes)
    # A network without classes accepts class weights of shape [b, 0].
    label_vectors = None if jnp.shape(label_vectors) == (b, 0) else jnp.asarray(label_vectors)
  return network.value.apply({'params': params}, x_in.astype(jnp.float32), c_noise, label_vectors)


def _check_labels(labels, b, classes):
  shape = jnp.shape(labels)
  if shape not in {(b,), (b, classes)}:
    raise ValueError(f'label_vectors has shape {shape}: give one-hot vectors of shape '
                     f'({b}, {classes}), or classes of shape ({b},)')
  if len(shape) == 1:
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
      raise ValueError(f'label_vectors of shape {shape} has dtype {jnp.result_type(labels)}: give '
                       'integer classes')
    # A class outside the range would be read as the null label.
    known = not arrays.is_traced(labels)
    wrong = {int(y) for y in np.asarray(labels) if not 0 <= y <= classes} if known else set()
    if wrong:
      raise ValueError(f'label_vectors contains the classes {sorted(wrong)}: give 0 to {classes - 1}, '
                       f'or {classes} or None for the null label')


def export(params: PyTree, path: files.Path) -> None:
  """Writes the params of an EDM2: the inverse of `load`, bit for bit.

  Raises ValueError if params belong to another network, with the names that do not fit, and if path
  exists.
  """
  flat = traverse_util.flatten_dict(params)
  try:
    expected = _expected(*_described({path: np.shape(a) for path, a in flat.items()}))
  except (KeyError, IndexError, ValueError) as error:
    raise ValueError(f'params are not of an EDM2 ({error}); they contain '
                     f'{sorted("/".join(path) for path in flat)[:10]}') from error
  if ('uncertainty', 'linear', 'weight') not in flat:
    raise ValueError('params have no uncertainty u(sigma), which the published layout needs: train '
                     'with config.loss.uncertainty=128')
  name = lambda shapes: {'/'.join(path): shape for path, shape in shapes.items()}
  wrong = files.differences(name(expected), name({path: np.shape(a) for path, a in flat.items()}), {})
  if wrong:
    raise ValueError(f'params differ in {len(wrong)} arrays from the EDM2 of their sizes:\n  '
                     + '\n  '.join(wrong))
  files.write(path, {_key(ours): _to_theirs(np.asarray(a)) for ours, a in flat.items()})


def _described(shapes):
  """(network, shape of its images, channels of the uncertainty) of params with {path: shape}."""
  sides = sorted({int(match[1]) for path in shapes
                  if (match := re.fullmatch(r'enc_(\d+)x\1_block0', path[0]))}, reverse=True)
  block = lambda side, i=0: f'enc_{side}x{side}_block{i}'
  made = lambda *path: shapes[*path, 'weight'][-1]
  features = shapes['emb_noise', 'weight']
  # At width 1 the multipliers are the channels.
  network = EDM2(
      width=1, multipliers=tuple(made(block(side), 'conv_res0') for side in sides), blocks=sum(
          (block(sides[0], i), 'emb_gain') in shapes for i in range(len(shapes))), attention=tuple(
          side for side in sides if (block(side), 'attn_qkv', 'weight') in shapes),
      # Shapes do not depend on the number of heads.
      head_width=1, num_classes=shapes.get(('emb_label', 'weight'), (0,))[0],
      noise_multiplier=features[0], embedding_multiplier=features[1])
  uncertainty = shapes.get(('uncertainty', 'linear', 'weight'), (1,))
  return network, (sides[0], sides[0], made('out_conv')), uncertainty[0]


def _expected(network, shape, logvar_channels):
  """{our path: shape}, including the uncertainty."""
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
  """Our [..., cin, cout] -> their [cout, cin, ...]."""
  return shape[::-1] if len(shape) < 3 else (shape[3], shape[2], *shape[:2])


def _to_ours(a):
  return np.asarray(a.transpose(2, 3, 1, 0) if a.ndim == 4 else a.T, order='C')


def _to_theirs(a):
  return np.asarray(a.transpose(3, 2, 0, 1) if a.ndim == 4 else a.T, order='C')
