"""python -m experiments.laws: how exactly the plane's laws hold in floating point."""
