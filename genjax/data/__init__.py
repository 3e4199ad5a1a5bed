"""Data sets by name, as random-access splits, and batches that depend only on (seed, step)."""
