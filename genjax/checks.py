"""One clear error for what a user gives: what it was, what was expected, what is nearest."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence


class ConfigError(ValueError):
    """The user's config, data or disk is at fault; the message says what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names most like `name`, comma-separated, for an error message."""
    known = list(known)
    by_leaf = [k for k in known if k.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    near = list(dict.fromkeys(difflib.get_close_matches(name, known, n=3, cutoff=0.5) + by_leaf))
    return ", ".join(near[:4] or sorted(known)[:12])


def require(ok: bool, name: str, value: object, expected: str) -> None:
    """Raises ConfigError, "`name`=`value`: expected `expected`", unless `ok`."""
    if not ok:
        raise ConfigError(f"{name}={value!r}: expected {expected}.")


def one_of(name: str, value: object, choices: Sequence[str]) -> None:
    """Raises ConfigError unless `value` is among `choices`; names the nearest of them."""
    if value not in choices:
        listed = ", ".join(map(str, choices))
        near = nearest(str(value), choices)
        raise ConfigError(f"{name}={value!r}: expected one of {listed}. Nearest: {near}.")


def is_number(value: object, infinite: bool = False) -> bool:
    """Whether it is a Python number, no truth and no NaN, and finite unless `infinite`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return False
    return infinite or math.isfinite(value)
