"""The modes of the command line: one module for each larger mode, and the code they share."""
