"""Layers as nnx modules, and the adapter that turns a module into pure functions."""
