"""python -m experiments.energies: what a training step costs through the gradient of a gradient."""
