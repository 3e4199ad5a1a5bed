"""JSON Lines: one object a line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from genjax.files import parse_json


def rows(text: str) -> Iterator[tuple[int, dict[str, Any] | ValueError]]:
    """(number from 1, the object or what is wrong with it) of each line that is not blank.

    What is wrong is returned, so that a reader may leave out a bad line and go on. Lines end in a
    line feed only: a text may hold other characters that Python takes for the end of a line.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, parse_json(line.encode())
            except ValueError as error:
                expected = "Expected one JSON object a line."
                yield number, ValueError(f"line {number}: not a JSON object ({error}). {expected}")


def all_rows(text: str) -> list[dict[str, Any]]:
    """The object of each line.

    Raises:
      ValueError: a line is none; says which.
    """
    found = []
    for _, row in rows(text):
        if isinstance(row, ValueError):
            raise row
        found.append(row)
    return found
