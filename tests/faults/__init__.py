"""python -m tests.faults: kills, stops and damages small runs, and checks that they resume."""
