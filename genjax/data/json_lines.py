"""JSON Lines: one JSON object per line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from genjax.files import parse_json


def rows(text: str) -> Iterator[tuple[int, dict[str, Any] | ValueError]]:
    """(number from 1, the object or the error) of each line that is not blank.

    Errors are returned so that the caller can skip a bad line and continue. Only a line feed ends a
    line: a text may hold other characters that Python treats as line ends.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, parse_json(line.encode())
            except ValueError as error:
                expected = "Expected one JSON object per line."
                yield number, ValueError(f"line {number}: not a JSON object ({error}). {expected}")


def all_rows(text: str) -> list[dict[str, Any]]:
    """The object of each line.

    Raises:
      ValueError: a line is not a JSON object; the message has its number.
    """
    objects = []
    for _, row in rows(text):
        if isinstance(row, ValueError):
            raise row
        objects.append(row)
    return objects
