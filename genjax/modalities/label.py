"""Labels: one of several classes, given by its number, from 0, or by its name."""

from __future__ import annotations

import numpy as np

from genjax.config import ConfigError, nearest
from genjax.method import DataSpec, Field

NAME = "label"  # the field's name


def num_classes(spec: DataSpec) -> int:
    """How many classes the labels of a data set have; 0 if it has no labels."""
    return spec.fields[NAME].facts.get("num_classes", 0) if NAME in spec.fields else 0


def class_names(spec: DataSpec) -> tuple[str, ...]:
    """The names of a data set's classes, or their numbers; () if it has no labels."""
    named = spec.fields[NAME].facts.get("classes") if NAME in spec.fields else ()
    return tuple(map(str, named or range(num_classes(spec))))


def required_classes(spec: DataSpec, setting: str, wanted: bool) -> int:
    """`num_classes` if the config's `setting` makes the method use labels (`wanted`); else 0.

    Raises:
      ConfigError: labels are wanted, but the data have none.
    """
    if wanted and not num_classes(spec):
        raise ConfigError(
            f"config.{setting}, but {spec.name} has no labels, or not in every split (the log says "
            "so). Change it, or choose a data set with labels."
        )
    return num_classes(spec) if wanted else 0


def label_fields(spec: DataSpec) -> dict[str, Field]:
    """The labels of a data set: its field `label` or, without one, all fields of this kind."""
    if num_classes(spec):
        return {NAME: spec.fields[NAME]}
    return {name: field for name, field in spec.fields.items() if field.kind == "label"}


def label_condition(spec: DataSpec, known: bool) -> dict[str, Field]:
    """`Method.conditions` of a method that is conditioned on the label if `known`."""
    return {NAME: spec.fields[NAME]} if known else {}


def name(number: int, field: Field) -> str:
    """The name of a class, or its number if it has no name."""
    names = field.facts.get("classes", ())
    return names[number] if number < len(names) else str(number)


def parse(given: str, field: Field) -> np.ndarray:
    """The class with the name or number `given`.

    Raises:
      ConfigError: no class has this name or number.
    """
    total, names = field.facts["num_classes"], list(field.facts.get("classes", ()))
    if given in names:
        return np.asarray(names.index(given), field.dtype)
    if not given.isdecimal() or int(given) >= total:
        or_name = f", or a name: {nearest(given, names)}" if names else ""
        raise ConfigError(f"{given!r}: expected a class from 0 to {total - 1}{or_name}.")
    return np.asarray(int(given), field.dtype)


def text(samples: np.ndarray, field: Field) -> str:
    """The name of each sample's class, one per line."""
    return "".join(f"{name(int(number), field)}\n" for number in samples)


def files(samples: np.ndarray, field: Field) -> dict[str, bytes]:
    """The names of the classes as a text file."""
    return {".txt": text(samples, field).encode()}
