"""Samplers as pure functions: diffusion solvers, and decoding of tokens."""
