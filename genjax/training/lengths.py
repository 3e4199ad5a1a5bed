"""The length that a run began with; its warm-ups and late starts are shares of it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from etils import epath
from ml_collections import ConfigDict

from genjax import config as configs
from genjax import method as methods
from genjax.durations import steps
from genjax.method import DataSpec, Stage
from genjax.training import workdir
from genjax.training.assemble import total_steps


def shares(config: ConfigDict) -> dict[str, str]:
    """The durations that a config gives as shares of the run, such as a warm-up: key -> text.

    Cadences (keys `*.every`) are left out: they follow the run's length. Percentages in `dataset`
    are left out too: they are shares of the data.
    """
    return {
        key: value
        for key, value in configs.flatten(config).items()
        if isinstance(value, str)
        and re.fullmatch(r"[0-9][0-9_.]*_percents?", value)
        and not re.fullmatch(r"dataset\..*|.*\.every", key)
    }


def settled(config: ConfigDict, length: int) -> ConfigDict:
    """Returns `config` with its `shares` in steps, for a run that began with `length` steps."""
    return configs.override(
        config,
        {
            key: f"{steps(text, batch_size=1, examples=0, total=length)}_steps"
            for key, text in shares(config).items()
        },
    )


def began_with(folder: epath.Path, stages: Mapping[str, Stage] | None = None) -> int:
    """Returns the steps of the run in `folder` when it began; 0 if there is no run to resume.

    If `config.json` does not say, as in older runs, the run began with its stored duration.
    """
    stored = workdir.read_config(folder) if workdir.has_checkpoint(folder) else None
    if stored is None:
        return 0
    if length := workdir.read_length(folder):
        return length
    spec = workdir.read_spec(folder)
    return total_steps(stored, spec, methods.build(stored, spec, stages))


def settle(
    config: ConfigDict,
    spec: DataSpec,
    folder: epath.Path,
    stages: Mapping[str, Stage] | None = None,
) -> ConfigDict:
    """Returns `config` with the durations that it gives as shares of the run in steps.

    They are shares of the length that the run in `folder` began with, or begins with now, so that
    a longer `duration` does not move them.

    Args:
      config: a checked config.
      spec: the description of the data.
      folder: the run's folder.
      stages: the run's stages.
    """
    if not shares(config):
        return config
    length = began_with(folder, stages)
    length = length or total_steps(config, spec, methods.build(config, spec, stages))
    return settled(config, length)
