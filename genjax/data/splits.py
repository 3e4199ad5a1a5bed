"""Which part of the data is held out where a data set has no such split of its own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from genjax.config import ConfigError
from genjax.data import sources
from genjax.durations import parse_duration


def carve(
    sizes: Mapping[str, int], dataset: ConfigDict
) -> dict[str, tuple[int, Int[np.ndarray, " N"] | None]]:
    """Split -> (size, indices into the official train split; None if it is used whole).

    `dataset.validation` and `dataset.test` ("10_percent", "5000_examples") are taken out of train
    by a permutation that is the same in every run, unless `sizes` has them.

    Raises:
      ConfigError: another unit, or nothing is left to train on.
    """
    total = sizes["train"]
    order, taken = sources.order(total), 0
    splits: dict[str, tuple[int, np.ndarray | None]] = {}
    # Test first: its examples do not move when the validation split is resized.
    for split in ("test", "validation"):
        if split in sizes:
            splits[split] = (sizes[split], None)
        elif count := _amount(dataset[split], f"config.dataset.{split}", total):
            splits[split] = (count, np.sort(order[taken : taken + count]))
            taken += count
    if taken >= total:
        raise ConfigError(
            f"config.dataset.validation={dataset.validation!r} and "
            f"config.dataset.test={dataset.test!r} take all of the {total} training examples. "
            "Ask for less."
        )
    train = (total - taken, np.sort(order[taken:]) if taken else None)
    return {"train": train, **dict(reversed(splits.items()))}


def _amount(text: str, key: str, total: int) -> int:
    if not text:
        return 0
    amount, unit = parse_duration(text, key)
    if unit == "examples":
        return int(amount)
    if unit == "percent":
        return math.floor(amount / 100 * total + 0.5)
    raise ConfigError(f"{key}={text!r}: expected a unit of examples or percent.")


def cut(total: int, official: Collection[str], dataset: ConfigDict) -> dict[str, slice]:
    """Split -> part of a sequence of `total`: train first, then validation, then test.

    For one long text: what is held out is its end, in one piece. The borders are rounded down, so
    that "10_percent" for validation is nanoGPT's split of tiny Shakespeare, and "5_percent" for
    each that of TFDS.

    Raises:
      ConfigError: a unit that is not percent, or nothing is left to train on.
    """
    percents = []
    for split in ("validation", "test"):
        asked, key = dataset[split], f"config.dataset.{split}"
        amount, unit = parse_duration(asked, key) if asked and split not in official else (0, "")
        if unit not in ("", "percent"):
            raise ConfigError(
                f"{key}={asked!r}: the data are one text, of which the end is held out. Expected "
                "a part of it, such as '10_percent'."
            )
        percents.append(amount)
    borders = [0]
    for held_out in (sum(percents), percents[1], 0):
        borders.append(math.floor((100 - held_out) * total / 100 + 1e-6))
    if borders[1] <= 0:
        raise ConfigError(
            f"config.dataset.validation={dataset.validation!r} and "
            f"config.dataset.test={dataset.test!r} leave nothing of the text to train on. Ask for "
            "less."
        )
    parts = dict(zip(sources.SPLITS, itertools.pairwise(borders), strict=True))
    return {s: slice(*part) for s, part in parts.items() if s == "train" or part[0] < part[1]}
