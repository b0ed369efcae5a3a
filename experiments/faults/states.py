"""What a run has left behind: its last state as one number, and whether a whole checkpoint stands."""

import hashlib
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp

from eqflow.training import manifest


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


def restorable(workdir: pathlib.Path) -> bool:
  """Whether there is a whole checkpoint, or was none yet."""
  whole = [workdir / f'checkpoints/{step}' for step in steps(workdir)]
  return not whole or any(not manifest.damages(path) for path in whole)
