"""What the command line does: a module for each of the larger modes, and what they share."""
