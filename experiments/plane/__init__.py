"""python -m experiments.plane: the first picture of the README."""
