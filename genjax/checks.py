"""One clear error for what a user gives: what it was, what was expected, what is nearest.

A range is declared once, in the annotation of the option that it belongs to:

    class Options(NamedTuple):
        latent_dim: Width = 50
        free_bits: Annotated[float, Range(0, 100)] = 0.0

and every reader of options compares values with it before anything is allocated (`check_options`).
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
    """The user's config, data or disk is at fault; the message says what to do."""

    def __init__(self, message: str):
        """Takes the message; a word of a thousand letters or more in it is cut."""
        cut = r"\1... (cut) ...\2"
        super().__init__(re.sub(r"(\S{200})\S{760,}(\S{40})", cut, message))


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names most like `name`, the likest first, comma-separated, for an error message."""
    ordered = by_likeness(name, known)
    near = [other for other in ordered if _likeness(name, other) >= 0.5]
    return ", ".join(near[:4] or sorted(ordered)[:12])


def by_likeness(name: str, known: Iterable[str]) -> list[str]:
    """The known names, those most like `name` first."""
    return sorted(known, key=lambda other: (-_likeness(name, other), other))


def _likeness(name: str, other: str) -> float:
    """From 0 to about 1: of dotted names the last part counts most, then the sections before it."""
    (section, _, leaf), (where, _, word) = (text.rpartition(".") for text in (name, other))
    whole, part = (difflib.SequenceMatcher(None, *p).ratio() for p in ((name, other), (leaf, word)))
    words = re.split(r"[_\s-]+", word)
    if leaf == word:
        part = 1.0
    elif len(leaf) > 1 and leaf.lower() == "".join(w[:1] for w in words).lower():
        part = 0.95  # "lr" of "learning_rate"
    elif len(leaf) > 2 and leaf in words:
        part = max(part, 0.7)
    if not section:  # "learning_rate" is to find "optimizer.learning_rate"
        return max(whole, 0.95 * part if where else part)
    return max(whole, 0.9 * part + 0.1 * (section == where)) if part > 0.5 else whole


def require(ok: bool, name: str, value: object, expected: str) -> None:
    """Raises ConfigError, "`name`=`value`: expected `expected`", unless `ok`."""
    if not ok:
        raise ConfigError(f"{name}={shown(value)}: expected {expected}.")


def one_of(name: str, value: object, choices: Sequence[str]) -> None:
    """Raises ConfigError unless `value` is among `choices`; names the nearest of them."""
    if value not in choices:
        listed = ", ".join(map(str, choices))
        near = nearest(str(value)[:100], list(map(str, choices)))
        raise ConfigError(f"{name}={shown(value)}: expected one of {listed}. Nearest: {near}.")


def shown(value: object, most: int = 200) -> str:
    """`value` as an error message has it: a long one is cut."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python prints
        return f"a {type(value).__name__} that is too long to print"
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def first_line(error: BaseException, most: int = 300) -> str:
    """The first line of what an error says, cut where it is long; its type if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:most]


def literal(text: str) -> Any:
    """The Python literal that `text` is.

    Raises:
      ValueError: it is none, or nested too deeply.
    """
    try:
        return ast.literal_eval(text)
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"{shown(text)} is no Python literal") from error


def is_number(value: object, infinite: bool = False) -> bool:
    """Whether it is a Python number, neither a bool nor NaN, and finite unless `infinite`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if isinstance(value, int):
        return True
    return not math.isnan(value) and (infinite or math.isfinite(value))


GREATEST = 3.4e38  # of float32, in which the numbers of a config are used


class Range(NamedTuple):
    """The numbers that an option may have.

    Attributes:
      low: the least of them.
      high: the greatest.
      above: whether `low` itself is left out.
      below: whether `high` itself is left out.
      off: one more value, of an option that is switched off by it.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    off: float | None = None

    def admits(self, value: float) -> bool:
        """Whether a finite number is among them."""
        if value == self.off:
            return True
        enough = value > self.low if self.above else value >= self.low
        return enough and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        """Such as "at least 0 and below 1"."""
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
Blocks = Annotated[int, Range(1, 32)]  # blocks that are each traced
OtherWidth = Annotated[int, Range(0, 2**17)]  # 0 stands for what follows from another option
Kernel = Annotated[int, Range(1, 64)]  # side of a convolution
Rate = Annotated[float, Range(0, 1, below=True)]  # of dropout
Share = Annotated[float, Range(0, 1)]
Weight = Annotated[float, Range(0, GREATEST)]  # of a term of a loss
Positive = Annotated[float, Range(0, GREATEST, above=True)]
Finite = Annotated[float, Range(-GREATEST, GREATEST)]
Size = Annotated[int, Range(1, 2**20)]  # examples or samples at once


def check_options(of: Callable | type, values: Mapping[str, Any], name: str) -> None:
    """Compares values with the types and ranges that the options are annotated with.

    Args:
      of: a NamedTuple of options, or a function whose arguments they are.
      values: by name.
      name: the section of the config that they are from.

    Raises:
      ConfigError: one has another type, or is out of its range.
    """
    try:
        hints = typing.get_type_hints(of, include_extras=True)
    except NameError:  # annotated with what is imported for type checkers alone
        return
    for key, value in values.items():
        if key in hints:
            check_value(f"config.{name}.{key}", value, hints[key])


def check_value(name: str, value: Any, hint: Any) -> None:
    """Compares a value with an annotation: `int`, `Annotated[float, Range(0, 1)]`, tuples of one.

    Raises:
      ConfigError: it has another type, or is out of its range.
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
    """`check_value` of an entry of `value`, or of `value` itself."""
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
