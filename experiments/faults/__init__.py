"""python -m experiments.faults: runs that are killed, stopped and damaged, and what is left of them."""
