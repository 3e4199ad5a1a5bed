"""Modalities: how users give values, how samples are shown, and how examples are transformed.

A modality is a module of pure functions of a `Field`, found by the field's kind: one of
`genjax.modalities`, or any other module. It exports

    parse(given: str, field) -> array      converts what the user gives: a label, text or file name
    files(samples, field) -> {ending: bytes}   the files written for samples, next to the .npz

and, optionally,

    picture(samples, field) -> uint8 [H, W, 3]     one picture of samples, for PNG and report
    each(samples, field) -> {name: bytes}          one file for each sample
    text(samples, field) -> str                    the samples as text
    player(samples, field) -> bytes                the samples as a WAV, for the report
    read(file, field) -> samples                   reads samples from a file other than .npz
    transforms(dataset, spec, train) -> [transform]    seeded transforms (`data.transforms`)
    SAMPLES: int                                   how many samples are drawn by default
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from genjax.data.transforms import Example, Transform
from genjax.method import DataSpec, Field, find_module

SAMPLES = 64  # drawn by --mode=sample, unless a modality or the user says otherwise


def find(field: Field) -> ModuleType:
    """The modality of a field.

    Raises:
      ConfigError: there is no such module, or it lacks `parse` or `files`.
    """
    return find_module("dataset.fields", field.kind, __name__, "parse", "files")


def _optional(name: str, samples: np.ndarray, field: Field) -> Any:
    function = getattr(find(field), name, None)
    return None if function is None else function(samples, field)


def picture_of(samples: np.ndarray, field: Field) -> UInt8[np.ndarray, "H W 3"] | None:
    """One picture of samples; None if the modality has no pictures."""
    return _optional("picture", samples, field)


def text_of(samples: np.ndarray, field: Field) -> str | None:
    """Samples as text; None if the modality has no text."""
    return _optional("text", samples, field)


def player_of(samples: np.ndarray, field: Field) -> bytes | None:
    """Samples as a WAV; None if the modality has no sound."""
    return _optional("player", samples, field)


def number(field: Field) -> int:
    """How many samples are drawn by default."""
    return getattr(find(field), "SAMPLES", SAMPLES)


def transforms(dataset: ConfigDict, spec: DataSpec, train: bool) -> Transform | None:
    """The seeded transforms that `config.dataset` asks for, composed; None if there are none.

    Each modality in the data contributes its transforms, in the order of the fields.
    """
    modules = {field.kind: find(field) for field in spec.fields.values()}
    steps = [
        step
        for module in modules.values()
        for step in getattr(module, "transforms", lambda *_: ())(dataset, spec, train)
    ]
    if not steps:
        return None

    def apply(example: Example, rng: np.random.Generator) -> Example:
        for step in steps:
            example = step(example, rng)
        return example

    return apply
