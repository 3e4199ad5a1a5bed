"""Data: a name becomes random-access splits, and those become batches, pure in (seed, step)."""
