"""python -m experiments.energies: the cost of a training step with an explicit energy."""
