"""Post-hoc EMA and EDM2's magnitudes.

python -m experiments.posthoc_ema.profiles      the error of EMAs that are reconstructed after the run
python -m experiments.posthoc_ema.quality       sample quality by EMA width, learning rate and length
python -m experiments.posthoc_ema.magnitudes    activations and weights during training
python -m experiments.posthoc_ema.layers        magnitudes by layer, untrained
python -m experiments.posthoc_ema.overhead      the cost of two EMAs a training step
python -m experiments.posthoc_ema.figures       redraws the stored results
"""
