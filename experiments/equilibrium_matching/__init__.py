"""Equilibrium Matching compared with flow matching on two CPU cores, claim by claim of the paper."""
