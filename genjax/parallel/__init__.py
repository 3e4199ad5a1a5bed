"""Devices and processes: the mesh, the rules that place arrays on it, start-up."""
