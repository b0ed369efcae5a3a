"""python -m experiments.zero_terminal_snr: what a table that leaks into its noise cannot draw."""
