"""Checks of user input; each error says what was given, what was expected, and what is nearest.

A range is declared once, in the annotation of its option:

    class Options(NamedTuple):
        latent_dim: Width = 50
        free_bits: Annotated[float, Range(0, 100)] = 0.0

and every reader of options checks values against it before anything is allocated (`check_options`).
"""

from __future__ import annotations

import ast
import difflib
import math
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple


class ConfigError(ValueError):
    """A problem with the user's config, data or disk; the message says what to do."""

    def __init__(self, message: str):
        """Takes the message; words of a thousand or more characters in it are shortened."""
        cut = r"\1... (cut) ...\2"
        super().__init__(re.sub(r"(\S{200})\S{760,}(\S{40})", cut, message))


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names most similar to `name`, best first, as a text for an error message."""
    ordered = by_likeness(name, known)
    near = [other for other in ordered if _likeness(name, other) >= 0.5]
    return ", ".join(near[:4] or sorted(ordered)[:12])


def by_likeness(name: str, known: Iterable[str]) -> list[str]:
    """The known names, most similar to `name` first."""
    return sorted(known, key=lambda other: (-_likeness(name, other), other))


def _likeness(name: str, other: str) -> float:
    """Similarity, 0 to about 1; the last part of dotted names counts most, then the sections."""
    (section, _, leaf), (other_section, _, word) = (text.rpartition(".") for text in (name, other))
    whole, part = (difflib.SequenceMatcher(None, *p).ratio() for p in ((name, other), (leaf, word)))
    words = re.split(r"[_\s-]+", word)
    if leaf == word:
        part = 1.0
    elif len(leaf) > 1 and leaf.lower() == "".join(w[:1] for w in words).lower():
        part = 0.95  # "lr" of "learning_rate"
    elif len(leaf) > 2 and leaf in words:
        part = max(part, 0.7)
    if not section:  # "learning_rate" must find "optimizer.learning_rate"
        return max(whole, 0.95 * part if other_section else part)
    return max(whole, 0.9 * part + 0.1 * (section == other_section)) if part > 0.5 else whole


def require(ok: bool, name: str, value: object, expected: str) -> None:
    """Raises ConfigError, "`name`=`value`: expected `expected`", unless `ok`."""
    if not ok:
        raise ConfigError(f"{name}={shown(value)}: expected {expected}.")


def one_of(name: str, value: object, choices: Sequence[str]) -> None:
    """Raises ConfigError, with the nearest choices, unless `value` is among `choices`."""
    if value not in choices:
        listed = ", ".join(map(str, choices))
        near = nearest(str(value)[:100], list(map(str, choices)))
        raise ConfigError(f"{name}={shown(value)}: expected one of {listed}. Nearest: {near}.")


def shown(value: object, most: int = 200) -> str:
    """`repr(value)` for an error message, shortened if long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer with more digits than Python prints
        return f"a {type(value).__name__} that is too long to print"
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def first_line(error: BaseException, most: int = 300) -> str:
    """The first line of an error's message, shortened if long; its type if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:most]


def literal(text: str) -> Any:
    """Parses a Python literal.

    Raises:
      ValueError: `text` is not one, or is nested too deeply.
    """
    try:
        return ast.literal_eval(text)
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"{shown(text)} is not a Python literal") from error


def is_number(value: object, infinite: bool = False) -> bool:
    """Whether `value` is an int or float, not a bool or NaN, and finite unless `infinite`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if isinstance(value, int):
        return True
    return not math.isnan(value) and (infinite or math.isfinite(value))


GREATEST = 3.4e38  # about the largest float32; numbers of a config are used as float32


class Range(NamedTuple):
    """The range of numbers of an option.

    Attributes:
      low: the lower end.
      high: the upper end.
      above: whether `low` itself is excluded.
      below: whether `high` itself is excluded.
      off: one more allowed value, which switches the option off.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    off: float | None = None

    def admits(self, value: float) -> bool:
        """Whether the range contains a finite number."""
        if value == self.off:
            return True
        enough = value > self.low if self.above else value >= self.low
        return enough and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        """The range in words, such as "at least 0 and below 1"."""
        ends = []
        if self.low > -GREATEST:
            ends.append(f"{'above' if self.above else 'at least'} {_plain(self.low)}")
        if self.high == GREATEST:
            ends.append("finite in float32")
        elif self.high < math.inf:
            ends.append(f"{'below' if self.below else 'at most'} {_plain(self.high)}")
        text = " and ".join(ends)
        return f"{text}, or {_plain(self.off)}" if self.off is not None else text


def _plain(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


# Ranges that several options share.
Width = Annotated[int, Range(1, 2**17)]  # features of a layer
Depth = Annotated[int, Range(1, 10_000)]  # blocks that one scan runs through
Blocks = Annotated[int, Range(1, 32)]  # blocks that are traced one by one
OtherWidth = Annotated[int, Range(0, 2**17)]  # 0: derived from another option
Kernel = Annotated[int, Range(1, 64)]  # side of a convolution
Rate = Annotated[float, Range(0, 1, below=True)]  # of dropout
Share = Annotated[float, Range(0, 1)]
Weight = Annotated[float, Range(0, GREATEST)]  # of a term of a loss
Positive = Annotated[float, Range(0, GREATEST, above=True)]
Finite = Annotated[float, Range(-GREATEST, GREATEST)]
Size = Annotated[int, Range(1, 2**20)]  # examples or samples at once


def check_options(of: Callable | type, values: Mapping[str, Any], name: str) -> None:
    """Checks values against the annotated types and ranges of the options.

    Args:
      of: a NamedTuple of options, or a function with the options as arguments.
      values: option name -> value.
      name: section of the config with these values.

    Raises:
      ConfigError: a value has the wrong type or is out of its range.
    """
    try:
        hints = typing.get_type_hints(of, include_extras=True)
    except NameError:  # an annotation that is imported only for type checkers
        return
    for key, value in values.items():
        if key in hints:
            check_value(f"config.{name}.{key}", value, hints[key])


def check_value(name: str, value: Any, hint: Any) -> None:
    """Checks a value against an annotation: `int`, `Annotated[float, Range(0, 1)]` or a tuple.

    Raises:
      ConfigError: the value has the wrong type or is out of its range.
    """
    if typing.get_origin(hint) is not tuple:
        _check_one(name, value, value, hint, "")
        return
    require(isinstance(value, tuple | list), name, value, "a tuple")
    inner = typing.get_args(hint)
    if len(inner) == 2 and inner[1] is Ellipsis:
        for entry in value:
            _check_one(name, value, entry, inner[0], " each")


def _check_one(name: str, value: Any, entry: Any, hint: Any, each: str) -> None:
    """Checks `entry`, an entry of `value` or `value` itself, as `check_value` does."""
    ranges: list[Range] = []
    if typing.get_origin(hint) is Annotated:
        hint, *notes = typing.get_args(hint)
        ranges = [note for note in notes if isinstance(note, Range)]
    if hint is int:
        fits, expected = isinstance(entry, int) and is_number(entry), "a whole number"
    elif hint is float:
        fits, expected = is_number(entry, infinite=not ranges), "a number"
    elif hint is bool:
        fits, expected = isinstance(entry, bool), "True or False"
    elif hint is str:
        fits, expected = isinstance(entry, str), "a string"
    else:
        return
    limits = ", ".join(map(str, ranges))
    require(fits, name, value, ", ".join(filter(None, (expected, limits))) + each)
    require(all(r.admits(entry) for r in ranges), name, value, limits + each)
