"""One folder a claim: its question, its command, its numbers."""

import pathlib

ROOT = pathlib.Path(__file__).parents[1]
