"""Which part of the data is for what: by the names of its files, or held out of train."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Iterable, Mapping

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from genjax.config import ConfigError
from genjax.data import sources
from genjax.durations import parse_duration

# Split -> how it is spelled, in any case; as in Hugging Face's datasets library.
SPELLINGS = {
    "train": ("training", "train"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("testing", "test", "evaluation", "eval"),
}
SPLIT_OF = {spelling: split for split, names in SPELLINGS.items() for spelling in names}
# wiki.train, Train, test_images, train-00000-of-00004, val2017
_NAME = re.compile(
    rf"(?:(?P<prefix>.+)[-_. ])?(?P<split>{'|'.join(SPLIT_OF)})"
    r"(?:[-_. ]?(?:set|data|images?|imgs|pictures|texts?|split))?"
    r"(?P<shard>[-_. ]?\d+(?:[-_. ]of[-_. ]\d+)?)?",
    re.IGNORECASE,
)


def by_split(names: Iterable[str], where: str, prefixed: bool = False) -> dict[str, list[str]]:
    """Split -> the names that say that they are of it: one, or the shards of one in order.

    Every reader of data goes by this rule. A name is a spelling of `SPELLINGS` in any case, perhaps
    with a number (`train-00000-of-00004`, `val2017`) or a word such as images behind it.

    Args:
      names: of files (without their ending), folders or arrays.
      where: what holds them, for the error.
      prefixed: whether names may begin with a word of their own, the same for train and at least
        one other split, as in wiki.train and wiki.valid.

    Raises:
      ConfigError: several names are of the same split and not shards of one.
    """
    groups: dict[str, dict[str, list[re.Match]]] = {}
    for name in names:
        if (match := _NAME.fullmatch(name)) and (prefixed or not match["prefix"]):
            group = groups.setdefault((match["prefix"] or "").lower(), {})
            group.setdefault(SPLIT_OF[match["split"].lower()], []).append(match)
    chosen = groups.pop("", {})
    if "train" not in chosen:
        alike = (group for group in groups.values() if "train" in group and len(group) > 1)
        chosen = next(alike, chosen)
    return {
        split: [match.string for match in _in_order(chosen[split], split, where)]
        for split in sources.SPLITS
        if split in chosen
    }


def _in_order(matches: list[re.Match], split: str, where: str) -> list[re.Match]:
    stems = {match.string.removesuffix(match["shard"] or "") for match in matches}
    numbered = all(match["shard"] for match in matches)
    if len(matches) > 1 and (len(stems) > 1 or not numbered):
        listed = " and ".join(sorted(match.string for match in matches))
        raise ConfigError(
            f"{where} holds {listed}: expected one of them to be the split {split}, or its "
            "numbered parts. Rename or remove the others."
        )
    return sorted(matches, key=lambda m: [int(n) for n in re.findall(r"\d+", m["shard"] or "")])


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
            "Ask for less, or set one of them to ''."
        )
    train = (total - taken, np.sort(order[taken:]) if taken else None)
    return {"train": train, **dict(reversed(splits.items()))}


def _amount(text: str, key: str, total: int) -> int:
    if not text:
        return 0
    amount, unit = parse_duration(text, key)
    if unit == "examples":
        return int(amount)
    if unit == "percent":  # a share that is asked for is at least one example
        return max(math.floor(amount / 100 * total + 0.5), int(amount > 0))
    raise ConfigError(f"{key}={text!r}: expected a unit of examples or percent.")


def less_than_one(total: int, official: Collection[str], dataset: ConfigDict) -> bool:
    """Whether a share that is held out of `total` documents would be less than half a one."""
    for split in ("validation", "test"):
        if dataset[split] and split not in official:
            amount, unit = parse_duration(dataset[split], f"config.dataset.{split}")
            if unit == "percent" and 0 < amount / 100 * total < 0.5:
                return True
    return False


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
    borders = [total]
    for held_out, own in ((percents[1], percents[1]), (sum(percents), percents[0])):
        border = math.floor((100 - held_out) * total / 100 + 1e-6)
        borders.append(min(border, borders[-1] - (own > 0)))  # what is asked for is not nothing
    borders = [0, *reversed(borders)]
    if borders[1] <= 0:
        raise ConfigError(
            f"config.dataset.validation={dataset.validation!r} and "
            f"config.dataset.test={dataset.test!r} leave nothing of the text to train on. Ask for "
            "less."
        )
    parts = dict(zip(sources.SPLITS, itertools.pairwise(borders), strict=True))
    return {s: slice(*part) for s, part in parts.items() if s == "train" or part[0] < part[1]}
