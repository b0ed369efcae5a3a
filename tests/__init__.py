"""Tests mirror eqflow/; laws/ crosses its modules, faults/ kills and damages runs."""

import pathlib

ROOT = pathlib.Path(__file__).parents[1]
