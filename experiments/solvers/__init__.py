"""python -m experiments.solvers: measured orders, biases and equalities of every solver."""
