"""Post-hoc EMA and EDM2's magnitudes.

python -m experiments.posthoc_ema.profiles      Errors of EMAs that are reconstructed after the run.
python -m experiments.posthoc_ema.quality       Sample quality by EMA width, learning rate and length.
python -m experiments.posthoc_ema.magnitudes    Activations and weights during training.
python -m experiments.posthoc_ema.layers        Magnitudes by layer, untrained.
python -m experiments.posthoc_ema.overhead      The cost of two EMAs per training step.
python -m experiments.posthoc_ema.figures       Redraws the stored results.
"""
