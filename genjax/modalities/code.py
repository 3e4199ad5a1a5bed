"""Codes of a stage: tokens (integers) or latents (real numbers), of any shape."""

from __future__ import annotations

import numpy as np

from genjax.checks import ConfigError, literal, shown
from genjax.method import Field


def parse(given: str, field: Field) -> np.ndarray:
    """Converts numbers in Python's notation: 3, or ((1, 2), (3, 4)).

    Raises:
      ConfigError: not numbers, a wrong shape, tokens that are out of range, or numbers outside the
        field's fact `range`, (lowest, highest).
    """
    try:
        codes = np.asarray(literal(given))
        codes = codes.astype(field.dtype, casting="same_kind")
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigError(
            f"{shown(given)}: expected numbers of {np.dtype(field.dtype)}."
        ) from error
    if codes.shape != tuple(field.shape):
        raise ConfigError(f"{given!r} has shape {codes.shape}: expected {tuple(field.shape)}.")
    vocabulary_size = field.facts.get("vocabulary_size", 0)
    if vocabulary_size and not ((codes >= 0) & (codes < vocabulary_size)).all():
        raise ConfigError(f"{given!r}: expected tokens from 0 to {vocabulary_size - 1}.")
    check_range(repr(given), codes, field)
    return codes


def check_range(said: str, values: np.ndarray, field: Field) -> None:
    """Raises ConfigError, which begins with `said`, for values outside the field's fact `range`."""
    low, high = field.facts.get("range", (-np.inf, np.inf))
    if not ((values >= low) & (values <= high)).all():
        raise ConfigError(f"{said}: expected numbers from {low:g} to {high:g}.")


def files(samples: np.ndarray, field: Field) -> dict[str, bytes]:
    """No files in addition to the .npz: codes are not for people to read."""
    return {}
