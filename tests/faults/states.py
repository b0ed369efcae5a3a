"""What a run has left behind: its last state as one number, and whether a whole checkpoint stands."""

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
  # As numpy, on however many devices it was saved.
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
  """The steps whose checkpoints stand, rising."""
  return sorted(int(path.name) for path in (workdir / 'checkpoints').glob('*') if path.name.isdecimal())


def whole(workdir: pathlib.Path) -> list[int]:
  """The steps whose checkpoints are whole, rising."""
  return [step for step in steps(workdir) if not checksums.damages(workdir / f'checkpoints/{step}')]


def gone_on_from(workdir: pathlib.Path) -> list[int]:
  """The step that each training went on from, in turn; -1 where it began anew."""
  found, path = [], workdir / 'ledger.jsonl'
  for text in path.read_text().splitlines() if path.exists() else ():
    # A line may have been cut short.
    with contextlib.suppress(ValueError, KeyError):
      step = json.loads(text)['from']
      found.append(-1 if step is None else step)
  return found
