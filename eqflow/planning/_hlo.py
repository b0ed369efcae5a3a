"""The text of a compiled program: which instructions run, how often, and the bytes they move.

XLA's text is not a stable interface; only `costs` reads it, for numbers that no analysis reports.
"""

from collections.abc import Iterator
import math
import re
from typing import NamedTuple

# Bits of an entry; types that are not listed (token, opaque) have 0.
BITS = {'pred': 8, **{f'{kind}{n}': n for kind in 'su' for n in (2, 4, 8, 16, 32, 64)},
        'bf16': 16, 'f16': 16, 'f32': 32, 'f64': 64, 'c64': 64, 'c128': 128}
_SHAPE = re.compile(r'\b([a-z]+[0-9]*(?:e\d+m\d+\w*)?)\[([0-9,]*)\](\{[^}]*\})?')
_NAME = re.compile(r'%([\w.\-]+)')
_LINE = re.compile(r'\s+(?:ROOT )?%?([\w.\-]+) = (.*)')
_HEAD = re.compile(r'(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{$')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"?(\d+)')
# The workspace of a library call is the last of its results, and mostly untouched.
_LIBRARY = re.compile(r'custom_call_target="__cu(blas|dnn)')
_WORKSPACE = re.compile(r'\b[su]8\[[0-9]+\](\{[^}]*\})?(?=\)$)')
# Instructions that move nothing: aliases of existing arrays, and calls; the bodies of calls count.
FREE = frozenset(('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'call',
                  'conditional', 'after-all', 'partition-id', 'replica-id', 'iota', 'opt-barrier'))


class Instruction(NamedTuple):
  """One line of a program."""
  name: str
  shape: str
  opcode: str
  operands: tuple
  rest: str     # its attributes, as text


class Module(NamedTuple):
  """A program: its computations by name, and the name of the entry."""
  entry: str
  computations: dict


class Run(NamedTuple):
  """An instruction that runs, how often in one call of the program, and its operands."""
  instruction: Instruction
  times: int
  fused: bool       # inside a fusion: only the operands and results of a fusion touch memory
  operands: tuple   # shapes


def size(shape: str, near: str = '') -> int:
  """Bytes of a shape or tuple, as text; arrays with `near` in their layout count 0."""
  bits = 0
  for kind, lengths, layout in _SHAPE.findall(shape):
    if not near or near not in layout:
      entries = math.prod(int(n) for n in lengths.split(',') if n)
      bits += entries * BITS.get(kind, 8 if kind.startswith('f8') else 0)
  return bits // 8


def parse(text: str) -> Module:
  """The program of Compiled.as_text()."""
  computations, entry, lines = {}, '', None
  for line in text.splitlines():
    if line[:1] not in (' ', '}', '') and (head := _HEAD.match(line)):
      lines = computations.setdefault(head.group(2), [])
      entry = head.group(2) if head.group(1) else entry
    elif lines is not None and (found := _LINE.match(line)):
      lines.append(_instruction(*found.groups()))
  return Module(entry, computations)


def _instruction(name, text):
  end = _closed(text) if text.startswith('(') else text.index(' ')
  shape, text = text[:end], text[end + 1:]
  opcode, _, text = text.partition('(')
  end = _closed('(' + text)
  return Instruction(name, shape, opcode, tuple(_NAME.findall(text[:end - 1])), text[end:])


def _closed(text):
  """The index after the parenthesis that closes the first one."""
  depth = 0
  for found in re.finditer(r'[()]', text):
    depth += 1 if found.group() == '(' else -1
    if not depth:
      return found.end()
  return len(text)


def runs(module: Module) -> Iterator[Run]:
  """Every instruction that runs, with the known lengths of loops; unknown ones count once.

  All branches of a condition are listed.
  """
  yield from _runs(module, module.entry, 1, False)


def _runs(module, name, times, fused):
  lines = module.computations[name]
  shapes = {line.name: line.shape for line in lines}
  for line in lines:
    yield Run(line, times, fused, tuple(shapes.get(name, '') for name in line.operands))
    for inner in _inside(line):
      trips = _TRIPS.search(line.rest) if line.opcode == 'while' else None
      yield from _runs(module, inner, times * int(trips.group(1)) if trips else times,
                       fused or line.opcode == 'fusion')


def _inside(line):
  """The computations that an instruction runs, without the scalar reducers."""
  keys = {'fusion': 'calls', 'async-start': 'calls|called_computations', 'call': 'to_apply',
          'while': 'body',
          'conditional': 'branch_computations|true_computation|false_computation'}.get(line.opcode)
  if keys:
    for found in re.findall(rf'\b(?:{keys})=(\{{[^}}]*\}}|%[\w.\-]+)', line.rest):
      yield from _NAME.findall(found)


def traffic(module: Module, near: str = '') -> int:
  """Bytes that a call reads and writes: all operands and results of instructions outside of fusions.

  Loops count as often as they run. `near` is how layouts write that an array is in on-chip memory,
  'S(1)' for TPUs: such arrays do not count, and a copy to there counts once.
  """
  total = 0
  for run in runs(module):
    opcode, shape = run.instruction.opcode, run.instruction.shape
    if opcode == 'custom-call' and _LIBRARY.search(run.instruction.rest):
      shape = _WORKSPACE.sub('', shape)
    if run.fused or opcode in FREE or opcode in ('copy-start', 'slice-start'):
      continue
    if opcode in ('copy-done', 'slice-done'):
      moved = size(shape) * (1 if near and near in run.operands[0] else 2)
    else:
      # An asynchronous instruction reads where it starts and writes where it is done.
      moved = 0 if opcode.endswith('-start') else size(shape, near)
      moved += 0 if opcode.endswith('-done') else sum(size(one, near) for one in run.operands)
    total += run.times * moved
  return total
