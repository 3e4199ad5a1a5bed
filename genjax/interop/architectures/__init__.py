"""Types of language models of Hugging Face, one module each: how `networks.decoder` computes them.

A module is named like the `model_type` in config.json and has `ARCHITECTURE`. It is found by its
name: another type needs a module here and no other edit.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module

from genjax.interop.architecture import Architecture


def names() -> tuple[str, ...]:
    """The types of models that are read and written, in order of the alphabet."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


@cache
def find(name: str) -> Architecture:
    """The architecture of a type among `names`."""
    return import_module(f"{__name__}.{name}").ARCHITECTURE
