"""python -m experiments.weightings: every objective as a weight of log-SNR, as one figure."""
