"""python -m experiments.zero_terminal_snr: what a model cannot generate if its noise contains data."""
