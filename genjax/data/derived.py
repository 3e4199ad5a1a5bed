"""Fields derived from the generated image, for inpainting and super-resolution.

`config.dataset.derived` has a (name, how, argument) for each field. They are computed in this
order, after crops and flips:

    ("small", "smaller", 4)         the image at a quarter of both sides, by bicubic interpolation
    ("mask", "box", 0.5)            a mask that is 1 in a random rectangle; each side is between
                                    half of this share and this share of the image's side
    ("known", "outside", "mask")    the image, black where a mask is 1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from genjax.config import ConfigError, nearest, one_of
from genjax.data.transforms import Example, Transform, fit
from genjax.method import DataSpec, Field

HOW = ("smaller", "box", "outside")


def added(dataset: ConfigDict, spec: DataSpec) -> DataSpec:
    """`spec` with the fields that `dataset.derived` asks for.

    Raises:
      ConfigError: an invalid entry, a name that exists already, or data without images.
    """
    fields, target = dict(spec.fields), spec.generated
    for entry in dataset.derived:
        name, how, argument = _entry(entry)
        if dataset.codes or target.kind != "image":
            raise ConfigError(
                f"config.dataset.derived: {name!r} is made from images, but the target is "
                + ("the codes of a stage. " if dataset.codes else f"of kind {target.kind!r}. ")
                + "Remove it."
            )
        if name in fields:
            raise ConfigError(
                f"config.dataset.derived: the data already have a field {name!r}. Choose another "
                "name."
            )
        fields[name] = _field(how, argument, target, fields)
    return spec._replace(fields=fields)


def _entry(entry: Any) -> tuple[str, str, Any]:
    """The (name, how, argument) of an entry of `dataset.derived`.

    Raises:
      ConfigError: the entry is not valid.
    """
    parts = tuple(entry) if isinstance(entry, Sequence) and not isinstance(entry, str) else ()
    if len(parts) != 3 or not all(isinstance(part, str) for part in parts[:2]):
        raise ConfigError(
            f"config.dataset.derived: {entry!r} is not a valid entry. Expected (name, how, "
            'argument), as in (("small", "smaller", 4),).'
        )
    one_of(f"config.dataset.derived: how {parts[0]!r} is made", parts[1], HOW)
    return parts


def _field(how: str, argument: Any, target: Field, fields: Mapping[str, Field]) -> Field:
    height, width, channels = target.shape

    def fail(expected: str) -> ConfigError:
        return ConfigError(f"config.dataset.derived: {how!r} of {argument!r}: expected {expected}.")

    if how == "smaller":
        valid = isinstance(argument, int) and not isinstance(argument, bool) and argument > 1
        if not valid or height % argument or width % argument:
            raise fail(f"a whole number above 1 that divides the image's {height} x {width}")
        return target._replace(shape=(height // argument, width // argument, channels))
    if how == "box":
        if not isinstance(argument, int | float) or not 0 < argument <= 1:
            raise fail("a share of the image's sides, above 0 and at most 1")
        return Field("mask", (height, width, 1), np.dtype(np.uint8))
    masks = [n for n, f in fields.items() if (f.kind, f.shape) == ("mask", (height, width, 1))]
    if argument not in masks:
        hint = f"Nearest: {nearest(str(argument), masks)}" if masks else "There is no mask yet"
        raise fail(f"a mask of the image's size. {hint}")
    return target


def transform(dataset: ConfigDict, spec: DataSpec) -> Transform | None:
    """A transform that adds the derived fields to an example; None if there are none."""
    if not dataset.derived:
        return None
    entries, target = [_entry(entry) for entry in dataset.derived], spec.target

    def apply(example: Example, rng: np.random.Generator) -> Example:
        example = dict(example)
        image = example[target]
        for name, how, argument in entries:
            if how == "smaller":
                height, width, channels = image.shape
                example[name] = fit(image, channels, (height // argument, width // argument))
            elif how == "box":
                example[name] = _box(image.shape[:2], argument, rng)
            else:
                example[name] = image * (1 - example[argument])
        return example

    return apply


def _box(sides: tuple[int, int], share: float, rng: np.random.Generator) -> np.ndarray:
    mask = np.zeros((*sides, 1), np.uint8)
    slices = []
    for side in sides:
        longest = max(round(share * side), 1)
        length = int(rng.integers(max(longest // 2, 1), longest + 1))
        start = int(rng.integers(side - length + 1))
        slices.append(slice(start, start + length))
    mask[tuple(slices)] = 1
    return mask
