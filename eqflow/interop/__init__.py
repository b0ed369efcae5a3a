"""What other projects made, in ours: their conventions and their weights."""

from eqflow.interop.checkpoints import export as export, load as load
