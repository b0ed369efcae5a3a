"""What other projects made, in ours: their conventions and their weights."""
