"""python -m experiments.gain: where each output is blind, as one figure."""
