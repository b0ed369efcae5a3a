"""python -m experiments.reflow: straightness of paths, and quality in few steps."""
