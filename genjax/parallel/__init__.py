"""Devices and processes: the mesh, rules that place arrays on it, and start-up."""
