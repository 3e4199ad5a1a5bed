"""genjax: train generative models in JAX, one file of pure functions a family."""
