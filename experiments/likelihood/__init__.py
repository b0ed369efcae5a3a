"""python -m experiments.likelihood: errors of likelihoods, and the digits in bits per dimension."""
