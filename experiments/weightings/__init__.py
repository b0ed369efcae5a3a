"""python -m experiments.weightings: every objective as a weighting of log-SNR, in one figure."""
