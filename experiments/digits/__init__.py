"""python -m experiments.digits: the variants of configs/digits.py at one budget, as one table."""
