"""python -m experiments.autoguidance: guidance by a worse self and by class, in the plane."""
