"""python -m experiments.speed: what the house costs on top of its heart, as ratios."""
