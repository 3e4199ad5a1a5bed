"""Train, validation and test splits: found by name, or held out of train."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from genjax.config import ConfigError
from genjax.data import sources
from genjax.durations import parse_duration

# Split -> its spellings, in any case, as in Hugging Face's datasets library.
SPELLINGS = {
    "train": ("training", "train"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("testing", "test", "evaluation", "eval"),
}
SPLIT_OF = {spelling: split for split, names in SPELLINGS.items() for spelling in names}
RENAME = "Rename or remove the others."


@functools.cache
def _pattern(field: tuple[str, ...]) -> re.Pattern:
    """Matches wiki.train, test_images, train-00000-of-00004, val2017; with a field, x_train_0."""
    called = "|".join(map(re.escape, field))
    before = rf"(?:(?P<before>{called})[-_. /]?)?" if field else "(?:(?P<prefix>.+)[-_. ])?"
    after = rf"(?:[-_. /]?(?P<after>{called}))?" if field else ""
    return re.compile(
        rf"{before}(?P<split>{'|'.join(SPLIT_OF)})"
        rf"(?:[-_. ]?(?:set|data|images?|imgs|pictures|texts?|split))??{after}"
        r"(?P<shard>[-_. ]?\d+(?:[-_. ]of[-_. ]\d+)?)?",
        re.IGNORECASE,
    )


def _match(name: str, field: tuple[str, ...], prefixed: bool) -> re.Match | None:
    match = _pattern(field).fullmatch(name)
    if match and field:
        return match if match["before"] or match["after"] else None
    return match if match and (prefixed or not match["prefix"]) else None


def by_split(
    names: Iterable[str],
    where: str,
    prefixed: bool = False,
    field: Sequence[str] = (),
    remedy: str = RENAME,
) -> dict[str, list[str]]:
    """Split -> the names that belong to it: one name, or its numbered shards in order.

    Every reader of data uses this rule. A name is one of `SPELLINGS` in any case, perhaps followed
    by a number (`train-00000-of-00004`, `val2017`) or a word such as images.

    Args:
      names: names of files (without suffix), folders or arrays.
      where: what holds them, for the error message.
      prefixed: whether names may begin with a prefix that train shares with at least one other
        split, as in wiki.train and wiki.valid.
      field: the possible names of a field, if names must contain one, as in x_train.
      remedy: what to do about ambiguous names, for the error message.

    Raises:
      ConfigError: several names belong to the same split and are not shards of one name.
    """
    groups: dict[str, dict[str, list[re.Match]]] = {}
    for name in names:
        if match := _match(name, tuple(field), prefixed):
            prefix = "" if field else (match["prefix"] or "").lower()
            group = groups.setdefault(prefix, {})
            group.setdefault(_split_of(match), []).append(match)
    chosen = groups.pop("", {})
    if "train" not in chosen:
        with_train = (group for group in groups.values() if "train" in group and len(group) > 1)
        chosen = next(with_train, chosen)
    return {
        split: [match.string for match in _in_order(chosen[split], split, where, remedy)]
        for split in sources.SPLITS
        if split in chosen
    }


def exact_first(names: Iterable[str], where: str, remedy: str) -> dict[str, list[str]]:
    """Like `by_split`, but the exact name of a split takes precedence over other spellings.

    Raises:
      ConfigError: as for `by_split`, for a split without its exact name.
    """
    names = list(names)
    exact = {split: [split] for split in sources.SPLITS if split in names}
    spelled = [n for n in names if (m := _match(n, (), False)) and _split_of(m) not in exact]
    by_name = exact | by_split(spelled, where, remedy=remedy)
    return {split: by_name[split] for split in sources.SPLITS if split in by_name}


def _split_of(match: re.Match) -> str:
    return SPLIT_OF[match["split"].lower()]


def _in_order(matches: list[re.Match], split: str, where: str, remedy: str) -> list[re.Match]:
    stems = {match.string.removesuffix(match["shard"] or "") for match in matches}
    numbered = all(match["shard"] for match in matches)
    if len(matches) > 1 and (len(stems) > 1 or not numbered):
        listed = " and ".join(sorted(match.string for match in matches))
        raise ConfigError(
            f"{where} holds {listed}: expected one of them to be the split {split}, or its "
            f"numbered parts. {remedy}"
        )
    return sorted(matches, key=lambda m: [int(n) for n in re.findall(r"\d+", m["shard"] or "")])


def carve(
    sizes: Mapping[str, int], dataset: ConfigDict
) -> dict[str, tuple[int, Int[np.ndarray, " N"] | None]]:
    """Split -> (size, indices into the official train split; None if an official split is whole).

    `dataset.validation` and `dataset.test` ("10_percent", "5000_examples") are taken out of train
    by a permutation that is the same in every run, unless `sizes` has them. Splits of other names
    are kept as they are.

    Raises:
      ConfigError: an invalid unit, or nothing is left to train on.
    """
    total = sizes["train"]
    order, taken = sources.order(total), 0
    splits: dict[str, tuple[int, np.ndarray | None]] = {}
    # Test first, so that its examples do not change if the validation split is resized.
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
    others = {split: (size, None) for split, size in sizes.items() if split not in sources.SPLITS}
    return {"train": train, **dict(reversed(splits.items())), **others}


def carve_groups(
    groups: Sequence[str], dataset: ConfigDict
) -> dict[str, tuple[int, Int[np.ndarray, " N"] | None]]:
    """Like `carve` for examples in groups, none of which is in two splits.

    Groups are held out, in an order that is the same in every run, until a split has as many
    examples as `dataset` asks for, or a few more. Examples of one group are often nearly the same.

    Raises:
      ConfigError: as `carve`.
    """
    names, group = np.unique(np.asarray(groups, object), return_inverse=True)
    rank = np.empty(len(names), np.int64)
    rank[sources.order(len(names))] = np.arange(len(names))
    in_order = np.sort(rank[group])  # the rank of each example's group, examples by rank
    first, taken = {}, 0
    for split in ("test", "validation"):
        count = _amount(dataset[split], f"config.dataset.{split}", len(group))
        if count:
            end = min(taken + count, len(group)) - 1
            border = int(np.searchsorted(in_order, in_order[end], side="right"))
            first[split], taken = (taken, border), border
    if taken >= len(group):
        raise ConfigError(
            f"config.dataset.validation={dataset.validation!r} and "
            f"config.dataset.test={dataset.test!r} take all of the {len(names)} groups of "
            "examples. "
            "Ask for less, or set one of them to ''."
        )
    by_rank = np.argsort(rank[group], kind="stable")
    borders = {"train": (taken, len(group)), **dict(reversed(first.items()))}
    return {split: (b - a, np.sort(by_rank[a:b])) for split, (a, b) in borders.items()}


def _amount(text: str, key: str, total: int) -> int:
    if not text:
        return 0
    amount, unit = parse_duration(text, key)
    if unit == "examples":
        return int(amount)
    if unit == "percent":  # a share above 0 is at least one example
        return max(math.floor(amount / 100 * total + 0.5), int(amount > 0))
    raise ConfigError(f"{key}={text!r}: expected a unit of examples or percent.")


def less_than_one(total: int, official: Collection[str], dataset: ConfigDict) -> bool:
    """Whether a share held out of `total` documents would be less than half a document."""
    for split in ("validation", "test"):
        if dataset[split] and split not in official:
            amount, unit = parse_duration(dataset[split], f"config.dataset.{split}")
            if unit == "percent" and 0 < amount / 100 * total < 0.5:
                return True
    return False


def cut(
    total: int, official: Collection[str], dataset: ConfigDict, whole: bool = False
) -> dict[str, slice]:
    """Split -> slice of a sequence of length `total`: train, then validation, then test.

    For one long text, whose end is held out in one piece. Borders are rounded down: "10_percent"
    for validation gives nanoGPT's split of tiny Shakespeare, "5_percent" for both splits TFDS's.

    Args:
      total: the length of the text.
      official: splits that exist already and are not held out.
      dataset: the section of the config.
      whole: if the text is so short that nothing would be left to train on, use all for training.

    Raises:
      ConfigError: a unit that is not percent, or nothing is left to train on.
    """
    percents = []
    for split in ("validation", "test"):
        share, key = dataset[split], f"config.dataset.{split}"
        amount, unit = parse_duration(share, key) if share and split not in official else (0, "")
        if unit not in ("", "percent"):
            raise ConfigError(
                f"{key}={share!r}: the end of the text is held out. Expected a share of it, such "
                "as '10_percent'."
            )
        percents.append(amount)
    borders = [total]
    for held_out, percent in ((percents[1], percents[1]), (sum(percents), percents[0])):
        border = math.floor((100 - held_out) * total / 100 + 1e-6)
        borders.append(min(border, borders[-1] - (percent > 0)))  # a share above 0 is not empty
    borders = [0, *reversed(borders)]
    if borders[1] <= 0 and whole:
        return {"train": slice(0, total)}
    if borders[1] <= 0:
        raise ConfigError(
            f"config.dataset.validation={dataset.validation!r} and "
            f"config.dataset.test={dataset.test!r} leave nothing of the text to train on. Ask for "
            "less."
        )
    parts = dict(zip(sources.SPLITS, itertools.pairwise(borders), strict=True))
    return {s: slice(*part) for s, part in parts.items() if s == "train" or part[0] < part[1]}
