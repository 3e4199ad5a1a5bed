"""genjax: train generative models in JAX, with one file of pure functions per family.

`train`, `load`, `read_config`, `examples` and `Run` come from `genjax.library`, which is imported
on first use.
"""

from __future__ import annotations

from typing import Any

PUBLIC = ("examples", "load", "read_config", "train", "Run")


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'genjax' has no attribute {name!r}")
    from genjax import library

    return getattr(library, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])
