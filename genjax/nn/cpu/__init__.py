"""Products and convolutions in forms that are fast on the CPU; see `genjax.nn.bilinear`."""
