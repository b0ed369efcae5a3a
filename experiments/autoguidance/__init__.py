"""python -m experiments.autoguidance: autoguidance and class guidance in the plane."""
