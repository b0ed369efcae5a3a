"""python -m experiments.posthoc_ema.profiles: how exactly averages are reconstructed after the run."""
