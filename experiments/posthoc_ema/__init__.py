"""python -m experiments.posthoc_ema.profiles: how exactly averages are reconstructed after the run.
python -m experiments.posthoc_ema.quality: which width samples best, by learning rate and length.
python -m experiments.posthoc_ema.figures: draws what the last one has measured.
python -m experiments.posthoc_ema.overhead: what two averages cost a training step.
"""
