"""Judges of samples, found by name: a module here, or one of your own.

A judge is a module that exports `Options`, a NamedTuple of its settings and their defaults, and

    build_judge(options, evals, dataset, mesh) -> Judge

and, optionally,

    check(samples, dataset), which raises ConfigError for samples that it cannot judge; it is called
    before the judge is built, which may take minutes.

`config.evals.judges` names the judges of a run; the section `config.evals.<name>` has a judge's
settings. Each judge handles its own features and reference statistics.
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
    """A judge of samples.

    Attributes:
      judge: (samples [N, ...], references [N, ...], conditions) -> {metric: value}, on the host;
        the references are the held-out examples whose conditions the samples were drawn for.
        Samples read from a file (--samples) have no conditions, and no references (None) unless
        the user gives them. Beside the conditions are the `fields`.
      metrics: names of the metrics that it may return.
      samples: the most samples that it uses; 0 for as many as are shown.
      paired: whether it compares each sample with its own reference.
      prepare: fetches weights or trains networks, which may take minutes; called once, after all
        checks and before anything is judged.
      fields: fields of the held-out examples that are given to the judge beside the conditions,
        by their names in the data, though the samples were drawn without them; a judge with fields
        is paired.
    """

    judge: Callable[[np.ndarray, np.ndarray, Mapping[str, np.ndarray]], dict[str, float]]
    metrics: tuple[str, ...]
    samples: int = 0
    paired: bool = False
    prepare: Callable[[], None] = lambda: None
    fields: tuple[str, ...] = ()

    def of(
        self,
        samples: np.ndarray,
        target: str,
        examples: Mapping[str, np.ndarray],
        conditions: Mapping[str, np.ndarray],
        shown: int,
    ) -> dict[str, float]:
        """The metrics of the first samples, as many as it uses.

        Args:
          samples: [N, ...].
          target: the field of the examples that the samples resemble.
          examples: the held-out examples, one for each sample.
          conditions: of the samples.
          shown: how many samples are shown.
        """
        n = self.samples or shown
        given = {**conditions, **{name: examples[name] for name in self.fields}}
        given = {name: rows[:n] for name, rows in given.items()}
        return self.judge(samples[:n], examples[target][:n], given)


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
    """`config` with a complete section for each judge that it or the overrides name.

    Every setting of a judge can then be overridden, and is stored.

    Raises:
      ConfigError: a judge does not exist, or a section has a key that is not a setting.
    """
    key = "evals.judges"
    judge_overrides = {key: overrides[key]} if key in overrides else {}
    names = flatten(override(config, judge_overrides))[key]
    check_value(f"config.{key}", names, tuple[str, ...])
    config = config.copy_and_resolve_references()
    for name in names:
        section_name = name.rpartition(".")[2]
        section = _section(config.evals, name)
        options = read_options(section, f"evals.{section_name}", _module(name).Options)
        with config.unlocked():
            config.evals[section_name] = ConfigDict(options._asdict())
    return config


def check(config: ConfigDict, samples: np.ndarray, dataset: Dataset) -> None:
    """Checks that the judges of a config can judge these samples, without building the judges.

    Raises:
      ConfigError: a judge cannot.
    """
    for name in config.evals.judges:
        if check_samples := getattr(_module(name), "check", None):
            check_samples(samples, dataset)


def build(config: ConfigDict, dataset: Dataset, mesh: Mesh) -> tuple[Judge, ...]:
    """The judges that a config names, checked; call `Judge.prepare` before using them.

    Args:
      config: the whole config.
      dataset: the data that samples resemble.
      mesh: the devices.

    Raises:
      ConfigError: a judge does not exist, or does not fit the data.
    """
    judges = []
    for name in config.evals.judges:
        module, section = _module(name), _section(config.evals, name)
        options = read_options(section, f"evals.{name.rpartition('.')[2]}", module.Options)
        judges.append(module.build_judge(options, config.evals, dataset, mesh))
    return tuple(judges)
