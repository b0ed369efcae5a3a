"""Equilibrium Matching beside flow matching, on two cores: every claim of the paper as a row."""
