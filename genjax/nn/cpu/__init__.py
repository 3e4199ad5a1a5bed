"""Products and convolutions as XLA's CPU compiler computes them fast; see `genjax.nn.bilinear`."""
