"""Converts durations with a unit, such as "2000_steps" or "10_percent", to training steps."""

from __future__ import annotations

import math
import re

from ml_collections import ConfigDict

from genjax.checks import ConfigError, require, shown

UNITS = ("steps", "epochs", "examples", "percent")
MOST = 1e15  # of any unit
MOST_STEPS = 2**31 - 1  # of a run: the state counts them in 32 bits


def parse_duration(text: str, name: str = "duration") -> tuple[float, str]:
    """`"2_000_steps"` -> `(2000.0, "steps")`.

    Raises:
      ConfigError: the text is not a number, an underscore and one of `UNITS`, or is above `MOST`.
    """
    match = re.fullmatch(r"([0-9][0-9_]*(?:\.[0-9]+)?)_([a-z]+)", str(text))
    if not match or match[2].rstrip("s") not in {u.rstrip("s") for u in UNITS}:
        raise ConfigError(
            f"{name}={shown(text)}: expected a number and a unit, as in '2000_steps', '5_epochs', "
            "'60000_examples' or '10_percent'."
        )
    unit = next(u for u in UNITS if u.rstrip("s") == match[2].rstrip("s"))
    amount = float(match[1].replace("_", ""))
    require(amount <= MOST, name, text, f"at most {MOST:g} {unit}")
    return amount, unit


def steps(text: str, *, batch_size: int, examples: int, total: int = 0) -> int:
    """Converts a duration to training steps, rounded up; 0 for an empty text.

    Args:
      text: the duration.
      batch_size: examples per step.
      examples: examples in one epoch.
      total: steps of the whole run, for percentages.
    """
    if not text:
        return 0
    amount, unit = parse_duration(text)
    if unit == "epochs" and not examples:
        raise ConfigError(f"{text!r}: the number of examples is not known yet; give steps instead.")
    per_step = {
        "steps": 1.0,
        "epochs": batch_size / max(examples, 1),
        "examples": float(batch_size),
    }
    if unit == "percent":
        return max(1, math.ceil(amount / 100 * total - 1e-9))
    return max(1, math.ceil(amount / per_step[unit] - 1e-9)) if amount else 0


def steps_within(config: ConfigDict, examples: int, key: str, text: str, slices: int = 1) -> int:
    """Converts the duration of a part of the run, such as the warm-up, to steps.

    A percentage refers to the run's present length. Before a method is built,
    `training.lengths.settle` replaces percentages by steps of the length that the run began with.

    Args:
      config: config of the run.
      examples: examples in one epoch.
      key: key of the config with the duration.
      text: the duration; an empty one gives 0.
      slices: batches that one step takes from the loader (`training.game.slices`).

    Raises:
      ConfigError: the text is not a duration, or is longer than the run.
    """
    size = {"batch_size": config.batch_size * slices, "examples": examples}
    total = steps(config.duration, **size)
    try:
        stretch = steps(text, **size, total=total)
    except ConfigError as error:
        raise ConfigError(f"config.{key}={text!r}: {error}") from error
    require(stretch <= total, f"config.{key}", text, f"at most the run's {total} steps")
    return stretch
