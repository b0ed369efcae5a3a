"""The diffusion transformer in plain torch, with the weights of `eqflow.models.dit.DiT`.

Written in torch's idiom: images are [b, c, h, w], attention is torch's fused one, and the table of
frequencies is a buffer.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
  """x + gate attention(modulate(x)), then + gate mlp(modulate(x))."""

  def __init__(self, width, heads):
    super().__init__()
    self.heads = heads
    self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
    self.modulation = nn.Linear(width, 6 * width)
    self.qkv, self.attended = nn.Linear(width, 3 * width), nn.Linear(width, width)
    self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

  def forward(self, x, c):
    b, n, d = x.shape
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c)[:, None].chunk(6, dim=-1)
    qkv = self.qkv(self.norm(x) * (1 + scale_a) + shift_a)
    q, k, v = qkv.reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)
    x = x + gate_a * self.attended(attended)
    h = F.gelu(self.up(self.norm(x) * (1 + scale_m) + shift_m), approximate='tanh')
    return x + gate_m * self.down(h)


class DiT(nn.Module):
  """(z [b, c, h, w], noise conditioning [b], class [b]) -> y, shaped as z."""

  def __init__(self, *, patch, width, depth, heads, num_classes, channels, tokens):
    super().__init__()
    self.patch = patch
    self.patch_embed = nn.Conv2d(channels, width, patch, stride=patch)
    self.register_buffer('positions', torch.zeros(tokens, width))
    self.register_buffer('omega', torch.exp(-np.log(10000.0) * torch.arange(128) / 128))
    self.noise = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
    self.classes = nn.Embedding(num_classes + 1, width)
    self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
    self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
    self.modulation = nn.Linear(width, 2 * width)
    self.final = nn.Linear(width, patch * patch * channels)

  def forward(self, z, c_noise, condition):
    b, _, h, w = z.shape
    p, rows, columns = self.patch, h // self.patch, w // self.patch
    x = self.patch_embed(z).flatten(2).transpose(1, 2) + self.positions
    angle = c_noise[:, None].float() * self.omega
    embedded = self.noise(torch.cat([angle.cos(), angle.sin()], dim=-1))
    c = F.silu(embedded + self.classes(condition))
    for block in self.blocks:
      x = block(x, c)
    shift, scale = self.modulation(c)[:, None].chunk(2, dim=-1)
    y = self.final(self.norm(x) * (1 + scale) + shift)
    y = y.reshape(b, rows, columns, p, p, -1).permute(0, 5, 1, 3, 2, 4)
    return y.reshape(b, -1, h, w)


def from_flax(params, module, tokens, channels):
  """The torch network that computes the same as the flax `module` with `params`."""
  net = DiT(patch=module.patch, width=module.width, depth=module.depth, heads=module.heads,
            num_classes=module.num_classes, channels=channels, tokens=tokens)
  tensor = lambda a: torch.from_numpy(np.array(a, np.float32))
  state = {'positions': tensor(params['fixed_positions']), 'omega': net.omega,
           'classes.weight': tensor(params['classes']['table']['embedding'])}

  def dense(name, part):
    state[f'{name}.weight'], state[f'{name}.bias'] = tensor(part['kernel'].T), tensor(part['bias'])

  dense('noise.0', params['noise']['up'])
  dense('noise.2', params['noise']['out'])
  dense('modulation', params['final_modulation'])
  dense('final', params['final'])
  dense('patch_embed', params['patch_embed'])
  # A patch is (row, column, channel) in flax, (channel, row, column) here.
  kernel = state['patch_embed.weight'].reshape(-1, module.patch, module.patch, channels)
  state['patch_embed.weight'] = kernel.permute(0, 3, 1, 2)
  for i in range(module.depth):
    for name in ('modulation', 'qkv', 'attended', 'up', 'down'):
      dense(f'blocks.{i}.{name}', params[f'block_{i}'][name])
  net.load_state_dict(state)
  return net.eval()
