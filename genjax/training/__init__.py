"""Training: the step, the loop, and everything that watches, records and saves a run."""
