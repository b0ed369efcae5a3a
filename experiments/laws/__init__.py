"""python -m experiments.laws: how exactly the laws of the plane hold in floating point."""
