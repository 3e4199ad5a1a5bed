"""Codes of a stage: tokens (whole numbers) or latents (real numbers), of any shape."""

from __future__ import annotations

import numpy as np

from genjax.checks import ConfigError, literal, shown
from genjax.method import Field


def parse(given: str, field: Field) -> np.ndarray:
    """Numbers as Python writes them: 3, or ((1, 2), (3, 4)).

    Raises:
      ConfigError: they are no numbers, of another shape, or no tokens.
    """
    try:
        found = np.asarray(literal(given))
        found = found.astype(field.dtype, casting="same_kind")
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigError(
            f"{shown(given)}: expected numbers of {np.dtype(field.dtype)}."
        ) from error
    if found.shape != tuple(field.shape):
        raise ConfigError(f"{given!r} has shape {found.shape}: expected {tuple(field.shape)}.")
    values = field.facts.get("vocabulary_size", 0)
    if values and not ((found >= 0) & (found < values)).all():
        raise ConfigError(f"{given!r}: expected tokens from 0 to {values - 1}.")
    return found


def files(samples: np.ndarray, field: Field) -> dict[str, bytes]:
    """Nothing beside the .npz: nobody reads codes."""
    return {}
