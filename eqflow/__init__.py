"""Diffusion, flow matching and Equilibrium Matching in JAX, as vectors in one plane."""

__version__ = '0.1.0'
