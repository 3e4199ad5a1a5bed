"""Whole networks, without losses."""
