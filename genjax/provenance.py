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
    """The values from one config file's `get_config`, and the config files that it starts from."""

    file: str
    values: dict[str, Any]
    inner: tuple[Made, ...]

    def source(self, key: str, base: Mapping[str, Any]) -> str:
        """The file that set `key` last, or BASE.

        A file that sets a key to its previous value looks like one that does not set it.
        """
        for parent in self.inner:
            if _same(parent.values, self.values, key):
                return parent.source(key, base)
        changed = any(key in parent.values for parent in self.inner)
        return BASE if not changed and _same(base, self.values, key) else self.file


def of_file(
    location: str,
    overrides: Mapping[str, Any] | None = None,
    complete: configs.Complete | None = None,
) -> tuple[ConfigDict, dict[str, str]]:
    """Returns `config.load(location, overrides, complete)` and the source of each dotted key.

    A source is "base", the path of a config file, "preset NAME", "resolve", "flag", or "default"
    for keys that `complete` adds.

    Raises:
      ConfigError: as `config.load` does.
    """
    overrides = overrides or {}
    experiment = configs.read_experiment(location)
    given = configs.given(experiment, overrides, complete)
    config = configs.resolve(experiment, given)
    outputs, base = _made(experiment.module), configs.flatten(configs.base())
    sources = {key: outputs.source(key, base) for key in outputs.values}
    sources = dict.fromkeys(configs.flatten(given), DEFAULT) | sources
    sources |= dict.fromkeys(experiment.values, f"preset {experiment.preset}")
    sources |= dict.fromkeys(overrides, FLAG)
    before, after = configs.flatten(given), configs.flatten(config)
    return config, {key: sources[key] if _same(before, after, key) else RESOLVE for key in after}


def of_run(config: ConfigDict, overrides: Iterable[str] = ()) -> dict[str, str]:
    """The source of each dotted key of a run's config; flags have set the keys in `overrides`."""
    return dict.fromkeys(configs.flatten(config), STORED) | dict.fromkeys(overrides, FLAG)


def lines(config: ConfigDict, sources: Mapping[str, str]) -> list[str]:
    """Lines `dotted.key = value  # source`, one per key, in the config's order."""
    flat = configs.flatten(config)
    return [f"{f'{key} = {value!r}':50}  # {sources[key]}" for key, value in flat.items()]


def _made(module: ModuleType) -> Made:
    """Runs a config file's `get_config`, and those of the config files that its code refers to."""
    function = inspect.unwrap(module.get_config)
    names = function.__code__.co_names if inspect.isfunction(function) else ()
    referenced = (function.__globals__.get(name) for name in names)
    modules = [m for m in referenced if isinstance(m, ModuleType) and hasattr(m, "get_config")]
    file, working_folder = Path(module.__file__).resolve(), Path.cwd()
    file = file.relative_to(working_folder) if file.is_relative_to(working_folder) else file
    return Made(str(file), configs.flatten(module.get_config()), tuple(map(_made, modules)))


def _same(old: Mapping[str, Any], new: Mapping[str, Any], key: str) -> bool:
    return key in old and type(old[key]) is type(new[key]) and old[key] == new[key]
