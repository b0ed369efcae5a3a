"""One folder a claim: its question, its command, its numbers."""
