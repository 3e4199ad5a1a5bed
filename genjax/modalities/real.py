"""Real numbers of any shape: a measurement, an embedding."""

from __future__ import annotations

from genjax.modalities.code import files, parse

__all__ = ["files", "parse"]
