"""Mixtures of data sets with weights: the shares of their examples in training.

An epoch of a mixture has every example of every data set at least once, and the examples of those
that are small for their weights several times. It is a source like any other, so batches remain a
function of the seed and the step (`data.loader`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from genjax.checks import ConfigError, is_number, require, shown
from genjax.data import documents, sources, windows
from genjax.method import DataSpec

NAME = "mixture"
MOST = 2**31  # examples in an epoch
SPLITS = ("train", "validation", "test")


class Mixed:
    """The examples of several sources, each with as many places as it is given, one after another.

    A source with more places than examples repeats its examples in turn.
    """

    def __init__(self, parts: Sequence[Any], places: Sequence[int]):
        """`places`: for each of the sources `parts`."""
        self._parts, self._places = list(parts), list(places)
        self._ends = np.cumsum(self._places)

    def __len__(self) -> int:
        """The number of places."""
        return int(self._ends[-1])

    def _at(self, indices: Int[np.ndarray, " B"]) -> tuple[np.ndarray, np.ndarray]:
        """The number of each place's source, and the index in it."""
        number = np.searchsorted(self._ends, indices, side="right")
        starts = self._ends - self._places
        sizes = np.array([len(part) for part in self._parts])
        return number, (indices - starts[number]) % sizes[number]

    def __getitem__(self, index: int) -> Any:
        """The example at a place."""
        ((number,), (within,)) = self._at(np.array([index]))
        return self._parts[number][int(within)]

    def take(self, indices: Int[np.ndarray, " B"]) -> dict[str, np.ndarray]:
        """The examples at places, stacked."""
        number, within = self._at(np.asarray(indices))
        rows: dict[str, np.ndarray] = {}
        for one in np.unique(number):
            chosen = number == one
            for name, values in sources.take(self._parts[one], within[chosen]).items():
                if name not in rows:
                    rows[name] = np.empty((len(number), *values.shape[1:]), values.dtype)
                rows[name][chosen] = values
        return rows

    def content(self) -> Iterator[Any]:
        """The numbers of places, and the content of every source."""
        yield f"mixture {self._places}\n".encode()
        for part in self._parts:
            yield from sources.content(part)


def places(sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """The places of each source in an epoch: by the weights, and no fewer than it has examples.

    Raises:
      ConfigError: the weights are so different that an epoch would be too long.
    """
    shares = np.array(weights, np.float64) / sum(weights)
    whole = float((np.array(sizes) / shares).max())
    require(
        whole < MOST,
        "config.dataset.mixture: the weights",
        tuple(weights),
        f"shares with which an epoch has fewer than {MOST:,} examples; here it has {whole:.3g}, "
        "for each example of the data sets to come at least once",
    )
    return [max(round(whole * share), size) for share, size in zip(shares, sizes, strict=True)]


def load(
    dataset: ConfigDict, load_one: Callable[[ConfigDict], Any]
) -> tuple[DataSpec, dict[str, Mixed], str]:
    """(spec, split -> source, route) of the data sets that `dataset.mixture` lists.

    Each is (name, path, weight); all other keys of `dataset` hold for each of them, but that
    `text.prompt_field` is only for JSON Lines. In validation and test every example comes once.

    Args:
      dataset: the section of the config.
      load_one: loads one data set: `catalogue.load`.

    Raises:
      ConfigError: an entry is not (name, path, weight), or the examples of two differ.
    """
    expected = 'at least one (name, path, weight), such as (("brown", "", 0.8), ("sotu", "", 0.2))'
    given = dataset.mixture
    valid = bool(given) and all(map(_is_entry, given))
    require(valid, "config.dataset.mixture", given, expected)
    loaded = [load_one(_options(dataset, name, path)) for name, path, _ in given]
    masked = any("loss_mask" in one.spec.fields for one in loaded)
    specs = [_with_mask(one.spec, loaded) if masked else one.spec for one in loaded]
    for (name, path, _), spec in zip(given, specs, strict=True):
        _check_same(f"{name} {path}".strip(), spec, given[0][0], specs[0])
    split_sources = {}
    for split in SPLITS:
        here = [i for i, one in enumerate(loaded) if len(one.splits.get(split, ()))]
        parts = [loaded[i].splits[split] for i in here]
        if masked:
            parts = [windows.counted(part) for part in parts]
        sizes = [len(part) for part in parts]
        if split == "train":
            sizes = places(sizes, [given[i][2] for i in here])
        if parts:
            split_sources[split] = Mixed(parts, sizes)
    sizes = {split: len(source) for split, source in split_sources.items()}
    shares = ", ".join(f"{name} {weight:g}" for name, _, weight in given)
    route = f"{shares}: " + "; ".join(one.route for one in loaded)
    return specs[0]._replace(name=NAME, sizes=sizes), split_sources, route


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, tuple | list) or len(entry) != 3:
        return False
    name, path, weight = entry
    texts = isinstance(name, str) and isinstance(path, str) and bool(name) and name != NAME
    return texts and is_number(weight) and weight > 0


def _options(dataset: ConfigDict, name: str, path: str) -> ConfigDict:
    """The section of one data set."""
    one = dataset.copy_and_resolve_references()
    one.name, one.path, one.mixture = name, path, ()
    if Path(path).suffix.lower() not in documents.JSON_LINES:
        one.text.prompt_field = ""
    return one


def _with_mask(spec: DataSpec, loaded: Sequence[Any]) -> DataSpec:
    """`spec` with a `loss_mask` like that of the data sets that have one."""
    field = next(f for one in loaded if (f := one.spec.fields.get("loss_mask")))
    return spec._replace(fields={**spec.fields, "loss_mask": field})


def _check_same(name: str, spec: DataSpec, first: str, like: DataSpec) -> None:
    """Refuses a data set whose examples are not like those of the first.

    Raises:
      ConfigError: they have other fields, shapes, tokenizers or classes.
    """
    ours, theirs = spec.fields, like.fields
    require(
        (set(ours), spec.target) == (set(theirs), like.target),
        f"config.dataset.mixture: the fields of {name}",
        sorted(ours),
        f"those of {first}, {sorted(theirs)}",
    )
    for field, own in ours.items():
        for what in ("kind", "shape", "dtype"):
            one, other = getattr(own, what), getattr(theirs[field], what)
            _require_same(f"{what} of the field {field!r} of {name}", one, other, first)
        for fact in sorted({*own.facts, *theirs[field].facts}):
            one, other = own.facts.get(fact), theirs[field].facts.get(fact)
            _require_same(f"{fact} of the field {field!r} of {name}", one, other, first)


_OF_TEXT = (
    " If one is a single text, without a token that ends a text, set --config.dataset.text."
    "documents=packed or padded. If a tokenizer is trained, make one for all with "
    "--mode=tokenizer, and give its file as --config.dataset.text.tokenizer."
)


def _require_same(what: str, one: Any, other: Any, first: str) -> None:
    if one != other:
        advice = _OF_TEXT if what.startswith(("special", "tokenizer", "vocabulary")) else ""
        raise ConfigError(
            f"config.dataset.mixture: {what} is {shown(one, 80)}, expected {shown(other, 80)}, as "
            f"in {first}.{advice}"
        )
