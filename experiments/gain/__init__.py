"""python -m experiments.gain: the blind spots of each output, as one figure."""
