"""Weights imported from and exported to other libraries."""
