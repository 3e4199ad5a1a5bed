"""Judges of samples, found by name: a module here, or one of your own.

A judge is a module that exports `Options`, a NamedTuple of its settings and their defaults, and

    build_judge(options, evals, dataset, mesh) -> Judge

and, if it can say so before it is built, which may take minutes,

    check(samples, dataset), which raises ConfigError for samples that it does not judge.

`config.evals.judges` names those of a run; the section `config.evals.<name>` has their settings.
Features and reference statistics are a judge's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from genjax.checks import ConfigError, check_value
from genjax.config import flatten, override, read_options
from genjax.data.catalogue import Dataset
from genjax.method import find_module


class Judge(NamedTuple):
    """What judges samples.

    Attributes:
      judge: (samples [N, ...], references [N, ...], conditions) -> {metric: value}, on the host;
        the references are the held-out examples whose conditions the samples were drawn for. Of
        samples out of a file (--samples) there are no conditions, and no references (None) unless
        they are given.
      metrics: the names that it may give.
      samples: how many it wants, at most; 0 for as many as are shown.
      paired: whether it compares each sample with its own reference.
      prepare: fetches weights or trains what the judge needs, which may take minutes; called once,
        after all checks and before anything is judged.
    """

    judge: Callable[[np.ndarray, np.ndarray, Mapping[str, np.ndarray]], dict[str, float]]
    metrics: tuple[str, ...]
    samples: int = 0
    paired: bool = False
    prepare: Callable[[], None] = lambda: None


def _module(name: str):
    return find_module("evals.judges", name, __name__, "Options", "build_judge")


def _section(evals: ConfigDict, name: str) -> ConfigDict:
    section = evals.get(name.rpartition(".")[2], ConfigDict())
    if not isinstance(section, ConfigDict):
        raise ConfigError(
            f"config.evals.judges: {name!r} is also a key of config.evals. Give the judge's module "
            "another name."
        )
    return section


def with_sections(config: ConfigDict, overrides: Mapping[str, object]) -> ConfigDict:
    """`config` with a whole section for each judge that it or the overrides name.

    Every setting of a judge can then be overridden, and is stored.

    Raises:
      ConfigError: there is no such judge, or a section has a key that is none of its settings.
    """
    key = "evals.judges"
    asked = {key: overrides[key]} if key in overrides else {}
    names = flatten(override(config, asked))[key]
    check_value(f"config.{key}", names, tuple[str, ...])
    config = config.copy_and_resolve_references()
    for name in names:
        own = name.rpartition(".")[2]
        section = _section(config.evals, name)
        options = read_options(section, f"evals.{own}", _module(name).Options)
        with config.unlocked():
            config.evals[own] = ConfigDict(options._asdict())
    return config


def check(config: ConfigDict, samples: np.ndarray, dataset: Dataset) -> None:
    """Asks the judges of a config whether they can judge such samples; builds none.

    Raises:
      ConfigError: one cannot.
    """
    for name in config.evals.judges:
        if refuse := getattr(_module(name), "check", None):
            refuse(samples, dataset)


def build(config: ConfigDict, dataset: Dataset, mesh: Mesh) -> tuple[Judge, ...]:
    """The judges that a config names, checked; `Judge.prepare` makes them ready.

    Args:
      config: the whole.
      dataset: what samples are like.
      mesh: the devices.

    Raises:
      ConfigError: there is no such judge, or it does not go with the data.
    """
    found = []
    for name in config.evals.judges:
        module, section = _module(name), _section(config.evals, name)
        options = read_options(section, f"evals.{name.rpartition('.')[2]}", module.Options)
        found.append(module.build_judge(options, config.evals, dataset, mesh))
    return tuple(found)
