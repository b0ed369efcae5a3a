"""python -m tests.faults: runs that are killed, stopped and damaged, and what is left of them."""
