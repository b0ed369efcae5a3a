"""Collectives of a compiled program, from its text: kind, bytes, mesh axes, count."""

import collections
import math
import re
from typing import Any, NamedTuple

import numpy as np

from eqflow.arrays import Number
from eqflow.planning import _hlo

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute',
         'collective-broadcast', 'ragged-all-to-all')


class Collective(NamedTuple):
  """One collective among the devices of each group."""
  kind: str
  size: int      # bytes on one device: the result of a gather, else the operands
  groups: Any    # [groups, devices], positions in the mesh
  axes: tuple    # along which the devices of a group differ
  times: int     # in one call


def found(module: _hlo.Module, shape: dict[str, int]) -> list[Collective]:
  """The collectives of a program partitioned over a mesh of that shape, {axis: devices}.

  An asynchronous collective counts where it starts. Groups of one device exchange nothing.
  """
  exchanges = []
  for run in _hlo.runs(module):
    kind = run.instruction.opcode.removesuffix('-start')
    if kind not in KINDS:
      continue
    groups = _groups(kind, run.instruction.rest, math.prod(shape.values()))
    count = len(groups[0]) if len(groups) else 0
    if count < 2:
      continue
    given = sum(map(_hlo.size, run.operands))
    exchanges.append(Collective(kind, given * count if kind == 'all-gather' else given, groups,
                                _axes(groups, shape), run.times))
  return exchanges


def moved(kind: str, size: Number, devices: Number) -> float:
  """The least number of bytes that each of `devices` sends, for a collective of `size` bytes.

  (n - 1)/n of it for gather, scatter and all-to-all, twice that for all-reduce.
  """
  if kind in ('collective-permute', 'collective-broadcast'):
    return size
  return (2 if kind == 'all-reduce' else 1) * size * (devices - 1) / devices


def by_axis(exchanges: list[Collective]) -> dict[str, dict]:
  """{axes: count, bytes, moved and the bytes of each kind} of one call, axes joined by +."""
  table = collections.defaultdict(lambda: dict(count=0, bytes=0, moved=0.0, kinds={}))
  for one in exchanges:
    row, size = table['+'.join(one.axes)], one.times * one.size
    row['count'] += one.times
    row['bytes'] += size
    row['moved'] += one.times * moved(one.kind, one.size, len(one.groups[0]))
    row['kinds'][one.kind] = row['kinds'].get(one.kind, 0) + size
  return dict(table)


def _axes(groups, shape):
  """The axes along which the positions within a group differ."""
  at = np.unravel_index(np.asarray(groups), tuple(shape.values()))
  return tuple(axis for axis, place in zip(shape, at) if (place != place[:, :1]).any())


def _groups(kind, text, devices):
  """The groups of an instruction, from any of the four ways to write them."""
  if kind == 'collective-permute':
    # A device paired with itself sends nothing.
    pairs = re.search(r'source_target_pairs=\{(.*?)\}\}', text + '}').group(1)
    pairs = [[int(n) for n in pair] for pair in re.findall(r'(\d+),(\d+)', pairs)]
    return np.array([pair for pair in pairs if pair[0] != pair[1]])
  text = text[text.index('replica_groups=') + len('replica_groups='):]
  if text.startswith('{'):
    listed = re.match(r'\{(\{[\d,]*\},?)*\}', text).group()
    groups = [[int(n) for n in group.split(',')] for group in re.findall(r'\{([\d,]+)\}', listed)]
    return np.array(groups or [range(devices)])
  if text.startswith('mesh['):
    return _of_mesh(text)
  shape, tiles = re.match(r'\[([\d,]+)\]<=(\S+?\](?:T\([\d,]+\))?)', text).groups()
  return _tiled(tiles).reshape(_numbers(shape))


def _of_mesh(text):
  """mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a','b':(1)2}: along these axes, or a part of each."""
  sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", text[:text.index(']')])}
  ids = re.match(r'mesh\[.*?\], device_ids=\((.*?\](?:T\([\d,]+\))?)\)', text)
  places = _tiled(ids.group(1)) if ids else np.arange(math.prod(sizes.values()))
  along = {}
  for name, before, part in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?",
                                       re.search(r"\{('.*?)\}", text).group(1)):
    along[name] = (int(before), int(part)) if part else (1, sizes[name])
  # Split every axis into the sizes before the part, of the part, and after it.
  split = []
  for name, whole in sizes.items():
    before, part = along.get(name, (whole, 1))
    split += [before, part, whole // (before * part)]
  rest = [i for i in range(len(split)) if i % 3 != 1]
  return places.reshape(split).transpose(rest + list(range(1, len(split), 3))).reshape(
      -1, math.prod(part for _, part in along.values()))


def _tiled(text):
  """[4,2]T(1,0) -> np.arange in that shape, transposed, flattened."""
  shape, _, order = text.partition('T')
  places = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
  return (places.transpose(_numbers(order)) if order else places).reshape(-1)


def _numbers(text):
  return [int(n) for n in re.findall(r'\d+', text)]
