"""python -m experiments.two_sides: what diffusion and flow matching have in common, in five figures."""
