"""python -m experiments.speed: the overhead of the loop, the sampler and the import, as ratios."""
