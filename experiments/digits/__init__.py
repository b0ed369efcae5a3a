"""python -m experiments.digits: all variants of configs/digits.py at one budget."""
