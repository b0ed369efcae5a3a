"""Diffusion, flow matching and Equilibrium Matching: vectors in one plane, every conversion one Cramer's rule."""

__version__ = '0.1.0'
