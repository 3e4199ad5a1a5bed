"""Where each value of a config comes from: the base, a config file, a preset, `resolve`, a flag."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from genjax import config as configs

BASE, RESOLVE, FLAG, DEFAULT = "base", "resolve", "flag", "default"
STORED = "the run's config.json"


class Made(NamedTuple):
    """What one config file's `get_config` returns, and those that it starts from."""

    file: str
    values: dict[str, Any]
    inner: tuple[Made, ...]

    def source(self, key: str, base: Mapping[str, Any]) -> str:
        """The file that set `key` last, or BASE.

        A file that sets a value to what it was already is not told from one that leaves it alone.
        """
        for made in self.inner:
            if _same(made.values, self.values, key):
                return made.source(key, base)
        changed = any(key in made.values for made in self.inner)
        return BASE if not changed and _same(base, self.values, key) else self.file


def of_file(
    location: str,
    overrides: Mapping[str, Any] | None = None,
    complete: configs.Complete | None = None,
) -> tuple[ConfigDict, dict[str, str]]:
    """`config.load(location, overrides, complete)`, and the source of every dotted key of it.

    A source is "base", the path of a config file, "preset NAME", "resolve", "flag", or "default" of
    what `complete` adds.

    Raises:
      ConfigError: as `config.load`.
    """
    overrides = overrides or {}
    experiment = configs.read_experiment(location)
    given = configs.given(experiment, overrides, complete)
    config = configs.resolve(experiment, given)
    made, base = _made(experiment.module), configs.flatten(configs.base())
    sources = {key: made.source(key, base) for key in made.values}
    sources = dict.fromkeys(configs.flatten(given), DEFAULT) | sources
    sources |= dict.fromkeys(experiment.values, f"preset {experiment.preset}")
    sources |= dict.fromkeys(overrides, FLAG)
    before, after = configs.flatten(given), configs.flatten(config)
    return config, {key: sources[key] if _same(before, after, key) else RESOLVE for key in after}


def of_run(config: ConfigDict, overrides: Iterable[str] = ()) -> dict[str, str]:
    """The source of every dotted key of a run's config, of which flags set `overrides`."""
    return dict.fromkeys(configs.flatten(config), STORED) | dict.fromkeys(overrides, FLAG)


def lines(config: ConfigDict, sources: Mapping[str, str]) -> list[str]:
    """`dotted.key = value  # source` of every key, in the config's order."""
    flat = configs.flatten(config)
    return [f"{f'{key} = {value!r}':50}  # {sources[key]}" for key, value in flat.items()]


def _made(module: ModuleType) -> Made:
    """What a config file makes, and the files whose `get_config` its own names in its code."""
    function = inspect.unwrap(module.get_config)
    names = function.__code__.co_names if inspect.isfunction(function) else ()
    named = (function.__globals__.get(name) for name in names)
    inner = [m for m in named if isinstance(m, ModuleType) and hasattr(m, "get_config")]
    file, here = Path(module.__file__).resolve(), Path.cwd()
    file = file.relative_to(here) if file.is_relative_to(here) else file
    return Made(str(file), configs.flatten(module.get_config()), tuple(map(_made, inner)))


def _same(old: Mapping[str, Any], new: Mapping[str, Any], key: str) -> bool:
    return key in old and type(old[key]) is type(new[key]) and old[key] == new[key]
