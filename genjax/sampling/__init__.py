"""Samplers as pure functions: diffusion solvers over a denoiser."""
