"""Layers as nnx modules, and the seam that turns a module into pure functions."""
