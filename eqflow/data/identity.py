"""The identity of a data set: its files or records in order, each with name, label, size and content.

`source.records.parts()` lists them: the images of a folder; the records of arrays, and of every data
set that is decoded into memory; otherwise the files that the records are in, with label -1. As text,
each is a line: `digest label size "name"`. The digest is the first half of the SHA-256.
"""

import collections
from collections.abc import Sequence
import json

from eqflow.data.records import Part


def text(listed: Sequence[Part]) -> str:
  """One line for each part. Names are quoted as in JSON, so that they may have any bytes."""
  return ''.join(f'{part.digest} {part.label} {part.size} {json.dumps(part.name)}\n' for part in listed)


def parsed(lines: str) -> list[Part]:
  """The inverse of `text`. Raises ValueError for another text."""
  found = (line.split(' ', 3) for line in lines.splitlines())
  return [Part(json.loads(name), int(label), int(size), digest) for digest, label, size, name in found]


def first_change(theirs: Sequence[Part], ours: Sequence[Part]) -> str:
  """What of `theirs` is first another in `ours`, in words; '' if they are equal."""
  old, new = ({part.name: part for part in each} for each in (theirs, ours))
  held = collections.defaultdict(list)
  for part in theirs:
    held[part.digest].append(part.name)
  for there, here in zip(theirs, ours):
    if there == here:
      continue
    if there.name == here.name:
      return _changed(there, here, held)
    if there.name in new and here.name in old:
      return f'the order: {here.name!r} is before {there.name!r}'
    if there.name not in new:
      moved = next((part.name for part in ours
                    if part.digest == there.digest and part.name not in old), None)
      return f'{there.name!r} is {f"now {moved!r}" if moved is not None else "missing"}'
    return f'{here.name!r} is new'
  if len(theirs) != len(ours):
    there, here = theirs[len(ours):], ours[len(theirs):]
    return f'{there[0].name!r} is missing' if there else f'{here[0].name!r} is new'
  return ''


def _changed(there, here, held):
  """How a part of the same name differs."""
  if there.digest == here.digest:
    return f'{here.name!r} has the label {here.label}, not {there.label}'
  other = next((name for name in held[here.digest] if name != here.name), None)
  whose = f', which {other!r} had' if other is not None else ''
  return f'{here.name!r} has another content of {here.size:,} bytes{whose}'
