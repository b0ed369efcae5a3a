"""What devices send one another in a compiled program: kind, bytes, mesh axes, how often."""

import collections
import math
import re
from typing import Any, NamedTuple

import numpy as np

from eqflow.arrays import Number
from eqflow.planning import hlo

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute',
         'collective-broadcast', 'ragged-all-to-all')


class Collective(NamedTuple):
  """One exchange: of each device in every group, among the devices of its group."""
  kind: str
  size: int      # bytes on one device: of what is gathered whole, else of what is given
  groups: Any    # [groups, devices], places in the mesh
  axes: tuple    # along which the devices of a group differ
  times: int     # in one call


def found(module: hlo.Module, shape: dict[str, int]) -> list[Collective]:
  """The collectives of a program that is partitioned over a mesh of that shape, {axis: devices}.

  What starts and is awaited later counts where it starts. Groups of one device exchange nothing.
  """
  exchanges = []
  for run in hlo.runs(module):
    kind = run.instruction.opcode.removesuffix('-start')
    if kind not in KINDS:
      continue
    groups = _groups(kind, run.instruction.rest, math.prod(shape.values()))
    count = len(groups[0]) if len(groups) else 0
    if count < 2:
      continue
    given = sum(map(hlo.size, run.operands))
    exchanges.append(Collective(kind, given * count if kind == 'all-gather' else given, groups,
                                _axes(groups, shape), run.times))
  return exchanges


def moved(kind: str, size: Number, devices: Number) -> float:
  """Bytes that each device must send at least, for `size` bytes among so many devices.

  (n - 1)/n of what is gathered, scattered or exchanged, twice that of what is summed for all.
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
  """The axes along which the places of any one group differ."""
  at = np.unravel_index(np.asarray(groups), tuple(shape.values()))
  return tuple(axis for axis, place in zip(shape, at) if (place != place[:, :1]).any())


def _groups(kind, text, devices):
  """The groups of an instruction, in each of the four ways in which they are written."""
  if kind == 'collective-permute':
    # A pair that stays where it is sends nothing.
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
  """mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a','b':(1)2}: along these axes, or parts of them."""
  sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", text[:text.index(']')])}
  ids = re.match(r'mesh\[.*?\], device_ids=\((.*?\](?:T\([\d,]+\))?)\)', text)
  places = _tiled(ids.group(1)) if ids else np.arange(math.prod(sizes.values()))
  along = {}
  for name, before, part in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?",
                                       re.search(r"\{('.*?)\}", text).group(1)):
    along[name] = (int(before), int(part)) if part else (1, sizes[name])
  # Every axis is cut into what comes before the part, the part, and what comes after it.
  cut = []
  for name, whole in sizes.items():
    before, part = along.get(name, (whole, 1))
    cut += [before, part, whole // (before * part)]
  rest = [i for i in range(len(cut)) if i % 3 != 1]
  return places.reshape(cut).transpose(rest + list(range(1, len(cut), 3))).reshape(
      -1, math.prod(part for _, part in along.values()))


def _tiled(text):
  """[4,2]T(1,0) -> the numbers from 0 on in an array of that shape, transposed, in a row."""
  shape, _, order = text.partition('T')
  places = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
  return (places.transpose(_numbers(order)) if order else places).reshape(-1)


def _numbers(text):
  return [int(n) for n in re.findall(r'\d+', text)]
