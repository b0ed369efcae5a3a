"""python -m experiments.two_sides: what diffusion and flow matching share, as five figures."""
