"""What a run has written: a digest of its last state, and which of its checkpoints are undamaged."""

import contextlib
import hashlib
import json
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp

from eqflow.training import checksums


def digest(workdir: pathlib.Path) -> str:
  """SHA-256 of every leaf of the last state, and of every snapshot."""
  found = hashlib.sha256()
  newest = max(workdir.glob('checkpoints/*/state'), key=lambda path: int(path.parent.name))
  # As numpy, independent of the devices it was saved on.
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as orbax:
    leaves = orbax.metadata(newest).item_metadata.tree
    tree = orbax.restore(newest, args=ocp.args.PyTreeRestore(restore_args=jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), leaves)))
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    leaf = np.asarray(leaf)
    found.update(f'{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}'.encode() + leaf.tobytes())
  for path in sorted(workdir.glob('snapshots/*.safetensors')):
    found.update(path.name.encode() + path.read_bytes())
  return found.hexdigest()


def steps(workdir: pathlib.Path) -> list[int]:
  """The steps that have a checkpoint, in ascending order."""
  return sorted(int(path.name) for path in (workdir / 'checkpoints').glob('*') if path.name.isdecimal())


def whole(workdir: pathlib.Path) -> list[int]:
  """The steps that have an undamaged checkpoint, in ascending order."""
  return [step for step in steps(workdir) if not checksums.damages(workdir / f'checkpoints/{step}')]


def resumed_from(workdir: pathlib.Path) -> list[int]:
  """The step that each training resumed from, in order; -1 if it started from scratch."""
  found, path = [], workdir / 'ledger.jsonl'
  for text in path.read_text().splitlines() if path.exists() else ():
    # A kill may have truncated a line.
    with contextlib.suppress(ValueError, KeyError):
      step = json.loads(text)['from']
      found.append(-1 if step is None else step)
  return found
