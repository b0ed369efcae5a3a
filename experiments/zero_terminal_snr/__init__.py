"""python -m experiments.zero_terminal_snr: what a table that leaves 7 % of the image in its noise cannot draw."""
